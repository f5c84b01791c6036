"""The record of a job's events: how a worker appends to it, and how anybody reads it back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import hiredis
import msgspec
import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from tasks import keys
from tasks.connection import UNREACHABLE
from tasks.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Mark,
    Numbered,
    TokenLogprob,
    decode_events,
    encode_events,
    joined,
    number,
)
from tasks.jobs import JobState
from tasks.lua import Script
from tasks.record_size import ENTRY
from tasks.scripts import APPEND, END

log = logging.getLogger("rockchipllama.stream")

COALESCE = 0.010
"""Seconds: pieces that arrive within this time of the previous append share one. The first goes at once."""
LATE = 0.015
"""Seconds after an append when what no later piece has carried along is sent by itself. A little more than the above: an
engine that is fast enough to share appends nearly always brings that piece first, and a thread's wake-up is spared."""

AGAIN = 0.1
"""Seconds between two tries while Redis cannot serve."""


KEPT = 3.0
"""Seconds an append is kept after Redis took it. Redis writes its file to the disk once a second, or after two when the disk is
slow; what it took since then it may have forgotten when it comes back."""
MOST_KEPT = 1 << 20
"""Bytes of such appends that are kept, at most."""

_SHORTER = -2
"""Of the script: the record ends at `_SHORTER - status`, before what this append follows."""


class ClaimLost(Exception):
    """Raised when the job is not this worker's any more: it ended, or has another claim."""


class RecordCut(ClaimLost):
    """Raised when Redis has forgotten events of this claim that are not kept here any more. The claim is still held, and is to
    be handed back."""


class RecordedPiece(msgspec.Struct, frozen=True, array_like=True):
    """One token as the engine gave it, whether or not it became visible; a later claim goes on from these."""

    choice: int
    token: int
    data: bytes
    logprob: TokenLogprob | None = None
    """Where the request asked for it."""


class _Append(NamedTuple):
    """One that Redis took: when, what it follows, its last event, and what was sent."""

    at: float
    after: int
    seq: int
    args: list[Any]
    size: int


_pieces_encoder = msgspec.msgpack.Encoder()
_pieces_decoder = msgspec.msgpack.Decoder(tuple[RecordedPiece, ...])


def terminal_state(event: Finished | Failed) -> JobState:
    """The state of a job whose last event this is."""
    if isinstance(event, Failed):
        return JobState.FAILED
    return JobState.CANCELLED if event.reason is FinishReason.CANCELLED else JobState.FINISHED


class EventWriter:
    """Appends to the record of one claimed job, and publishes what it appends.

    Every append checks the claim's token in the same step, so a worker that lost its claim can write nothing: it gets
    `ClaimLost`. Nor can an append follow a hole: what Redis forgot because it died is written again from what is kept, or the
    writer ends with `RecordCut`. Usable from several threads. `on_cancel` is called, from whichever thread learns it, once
    somebody asked for the job's end; a cancel message lost on the way is thus noticed with the next append.
    """

    def __init__(
        self,
        client: redis.Redis,
        job: str,
        model: str,
        token: str,
        seq: int,
        on_cancel: Callable[[], None],
        *,
        patience: float,
    ) -> None:
        self.seq = seq
        """Number of the last event appended."""
        self.size = 0
        """Bytes that this claim's appends take in the record."""
        self._connection = client.connection_pool.get_connection()
        self._pool = client.connection_pool
        self.waits = False
        """Redis cannot serve at the moment, and somebody is kept waiting for it."""
        self._patience = patience
        """Seconds to go on trying meanwhile."""
        self._hurried = threading.Event()
        self._on_cancel = on_cancel
        self._keys = (keys.job(job), keys.events(job), keys.running(model))
        self._job = job
        self._token = token
        self._events: list[Event] = []
        self._pieces: list[RecordedPiece] = []
        self._fields: list[str | bytes] = []
        self._last_append = 0.0
        self._sent = False
        self._kept: deque[_Append] = deque()
        self._kept_bytes = 0
        self._ended = False
        self._closed = False
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._leaving = threading.Event()
        self._flusher: threading.Thread | None = None
        self.failure: Exception | None = None

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, events: Iterable[Event], piece: RecordedPiece | None = None) -> None:
        """Append soon: at once when the last append is `COALESCE` ago, else together with what follows.

        Raises `ClaimLost`, or one of `UNREACHABLE` when Redis stayed away longer than its patience.
        """
        with self._lock:
            self._check()
            for event in events:
                both = joined(self._events[-1], event) if self._events else None
                if both is not None:
                    self._events[-1] = both
                else:
                    self._events.append(event)
            if piece is not None:
                self._pieces.append(piece)
            if time.monotonic() - self._last_append >= COALESCE:
                if self._events:
                    self._append()
            else:
                if not self._due.is_set():
                    self._due.set()
                if self._flusher is None:
                    self._flusher = threading.Thread(target=self._flush_late, name="event-flusher", daemon=True)
                    self._flusher.start()

    def note(self, **fields: str | bytes) -> None:
        """Write fields of the record with the next append."""
        with self._lock:
            self._check()
            for name, value in fields.items():
                self._fields += [name, value]

    def end(self, event: Finished | Failed) -> None:
        """Append what is buffered and the job's last event, in one step. Nothing can be written after it."""
        with self._lock:
            self._check()
            self._events.append(event)
            self._append(terminal=event)
            self._ended = True

    def hurry(self) -> None:
        """Wait for Redis no longer: what it does not take from now on fails at once."""
        self._hurried.set()

    def close(self) -> None:
        """Let go of the connection. Twice is safe; what is buffered and was not ended is dropped."""
        self.hurry()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pool.release(self._connection)
        # The flusher leaves by itself: closed, it writes nothing, and the next job need not wait for it.
        self._leaving.set()
        self._due.set()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._ended or self._closed:
            raise ClaimLost("the job has ended")

    def _append(self, terminal: Finished | Failed | None = None) -> None:
        """Send the buffer as one append. The caller holds the lock."""
        seq = self.seq + len(self._events)
        payload = encode_events(self._events)
        args: list[Any] = [
            self._token,
            str(self.seq),
            str(seq),
            payload,
            _pieces_encoder.encode(self._pieces) if self._pieces else b"",
        ]
        if terminal is not None:
            args += [terminal_state(terminal).value, encode_events([terminal]), *self._fields]
        else:
            # Whatever is written here is for the client, the end of an empty choice as well.
            if not self._sent:
                self._fields += ["sent", "1", "phase", "decode"]
                self._sent = True
            if self._fields:
                args += ["-", *self._fields]
        begun = time.monotonic()
        script = APPEND if terminal is None else END
        try:
            while (status := self._send(script, args)) <= _SHORTER:
                self._send_again(_SHORTER - status)
        except Exception as error:
            self.failure = error
            raise
        self._last_append = time.monotonic()
        self._keep(_Append(self._last_append, self.seq, seq, args, sum(map(len, args))), begun)
        self.seq = seq
        self.size += len(args[3]) + len(args[4]) + ENTRY
        self._events.clear()
        self._pieces.clear()
        self._fields.clear()
        if status == -1:
            self.failure = ClaimLost("another worker holds this job now, or it has ended")
            raise self.failure
        if status == 1 and terminal is None:
            self._on_cancel()

    def _keep(self, append: _Append, begun: float) -> None:
        """Keep what Redis took just now, and drop what was taken long before this one was `begun`."""
        self._kept.append(append)
        self._kept_bytes += append.size
        while self._kept and (self._kept[0].at < begun - KEPT or self._kept_bytes > MOST_KEPT):
            self._kept_bytes -= self._kept.popleft().size

    def _send_again(self, last: int) -> None:
        """Write what Redis forgot after event `last`, with the same numbers and the same bytes. Raises `RecordCut`."""
        forgotten = [append for append in self._kept if append.seq > last]
        if not forgotten or forgotten[0].after != last:
            raise RecordCut(
                f"Redis came back without the events after {last} of {self.seq}, and they are not kept here"
            )
        log.warning("Redis forgot %d events, which are written again", self.seq - last, extra={"job": self._job})
        for append in forgotten:
            if self._send(APPEND, append.args) < 0:
                return  # forgotten or lost once more: the append that found out finds that out as well
        # Redis has them since now, and may forget them as it may what is new.
        now = time.monotonic()
        self._kept = deque(append._replace(at=now) if append.seq > last else append for append in self._kept)

    def _send(self, script: Script, args: list[Any]) -> int:
        """One call of a script past the client's general path: this runs for every token."""
        command = hiredis.pack_command(("EVALSHA", script.digest, 3, *self._keys, *args))
        deadline = time.monotonic() + self._patience
        try:
            while True:
                try:
                    if self.waits:  # sending would connect as well, but not to the master that Sentinel names now
                        self._connection.connect()  # type: ignore[no-untyped-call]
                    self._connection.send_packed_command([command], check_health=False)  # type: ignore[no-untyped-call]
                    return int(self._connection.read_response())
                except NoScriptError:
                    command = hiredis.pack_command(("EVAL", script.source, 3, *self._keys, *args))
                except UNREACHABLE as error:
                    # Sending again is safe: the record refuses a number it has passed.
                    if time.monotonic() > deadline or self._hurried.is_set():
                        raise
                    if not self.waits:
                        self.waits = True
                        log.warning("Redis cannot serve, trying again for %.0f s: %s", self._patience, error)
                    self._connection.disconnect()  # type: ignore[no-untyped-call]
                    self._hurried.wait(AGAIN)
        finally:
            self.waits = False

    def _flush_late(self) -> None:
        """Append what no later piece has carried along in time."""
        pause = LATE
        while True:
            self._due.wait()
            if self._leaving.wait(pause):
                return
            pause = LATE
            with self._lock:
                if self._closed:
                    return  # `close` came while this waited for the lock; its word to leave must not be cleared
                if self._ended or self.failure or not self._events:
                    self._due.clear()
                    continue
                left = self._last_append + LATE - time.monotonic()
                if left > 0.001:
                    pause = left
                    continue
                self._due.clear()
                try:
                    self._append()
                except Exception as error:
                    # Kept in self.failure, and raised by the writer's next call.
                    log.warning("appending failed: %s", error)


def numbered(entry: bytes, payload: bytes) -> list[Numbered]:
    """The events of one entry with their numbers; `entry` is its id, SEQ-ATTEMPT. Raises `Unreadable`."""
    seq, attempt = Mark.of(entry)
    return number(seq, decode_events(payload), attempt)


def decode_pieces(data: bytes) -> tuple[RecordedPiece, ...]:
    """The pieces in one entry's `p`; none where there is no such field."""
    return _pieces_decoder.decode(data) if data else ()
