"""Rendered events on the wire: as server-sent events, or as lines of JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, Protocol

import msgspec
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from api.answer import Answer, ClientGone, Stopped, Waiting
from api.drain import Drain, close
from api.errors import CANCELLED, INTERNAL, STOPPING, HttpProblem, Problem, of_error, of_failed
from api.interruption import Interrupted, first_of, unless
from tasks.errors import QueueUnavailable, TasksError
from tasks.events import TERMINAL, Event, Failed, Finished, FinishReason

log = logging.getLogger("rockchipllama.api")

GRACE = "x-stream-grace"
"""Header of a request: for how long its client wants to be able to come back to its stream; of the answer: how long it may."""
KEEP_ALIVE = b": keep-alive\n"
"""No empty line follows a comment: OpenAI's client would take it for the end of an event, once a frame before had an id."""
END = b"\n\n"
"""Of a frame; JSON has no line breaks of its own."""
EVENT_STREAM = "text/event-stream"
LINES = "application/x-ndjson"
BREATHER = 256
"""Events a client has read before that are passed over in one go, with nobody else served meanwhile."""


class Writer(Protocol):
    """A front's way to say one answer in frames: whole `data:` lines with the empty line behind them, or lines of JSON.

    Told the same events it writes the same frames, whenever and wherever: so a stream that broke off is said on.
    """

    def event(self, event: Event) -> bytes:
        """The frames for one event, b"" for none. Never asked about a failed or cancelled end."""

    def waiting(self, waiting: Waiting) -> bytes:
        """What keeps the line warm while nothing comes, and tells of the job's place. It is said of no event."""

    def problem(self, problem: Problem) -> bytes:
        """The frames for an end that was a failure or a cancellation."""

    def broken(self, problem: Problem) -> bytes:
        """The frame that ends a stream which cannot go on, though its job may. It is said of no event."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """How far a client has read: all frames that were made of the events up to number `seq`, and of the next one's `part`.

    It is told by the `id` of its last frame: 17-5 is all of event 17, 17-5.1 the first frame of several that were made of it.
    The 5 is the attempt that wrote the event (`tasks.events.Mark`).
    """

    seq: int = 0
    part: int = 0


BEGINNING = Place()


def text_json(text: str) -> bytes:
    """A text as JSON that no reader of lines can break apart. Cheap, for it is done with each token.

    JSON leaves U+0085, U+2028 and U+2029 as they are; some clients split lines at them.
    """
    data = msgspec.json.encode(text)
    return data if len(data) == len(text) + 2 or text.isascii() else unbroken(data)


def unbroken(data: bytes) -> bytes:
    """JSON with these three written out."""
    return (
        data.replace(b"\xc2\x85", b"\\u0085").replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    )


def comment(waiting: Waiting) -> bytes:
    """A line that every reader of server-sent events skips, and that keeps proxies and clients from giving up."""
    words = [f"position {waiting.position}"] if waiting.position is not None else []
    words += [f"about {ceil(waiting.wait)} s"] if waiting.wait is not None else []
    words += [waiting.why] if waiting.why else []
    return f": {', '.join(words)}\n".encode() if words else KEEP_ALIVE


def waiting_headers(waiting: Waiting) -> dict[str, str]:
    """The same in the headers of an answer, as it was when its job was accepted."""
    headers = {"x-queue-position": str(waiting.position)}
    if waiting.wait is not None:
        headers["x-queue-wait"] = str(ceil(waiting.wait))
    return headers


def identified(seq: int, attempt: int, data: bytes, after: Place = BEGINNING) -> bytes:
    """The frames made of event `seq`, which `attempt` wrote, with their ids, but for those up to `after`.

    Only the last of them says that all of the event was read.
    """
    if data.count(END) == 1:
        return b"id: %d-%d\n%b" % (seq, attempt, data)
    *firsts, last = data.removesuffix(END).split(END)
    ids = [b"id: %d-%d.%d\n%b\n\n" % (seq, attempt, part, frame) for part, frame in enumerate(firsts, 1)]
    ids.append(b"id: %d-%d\n%b\n\n" % (seq, attempt, last))
    return b"".join(ids[after.part if seq == after.seq + 1 else 0 :])


async def frames(
    answer: Answer, writer: Writer, after: Place = BEGINNING, *, skip: int = 0, numbered: bool = True
) -> AsyncGenerator[bytes, None]:
    """The answer as frames, from behind `after` and without the first `skip`, with ids where they are `numbered`.

    Past the first byte a failure is a frame, too: the status has been sent.
    """
    try:
        async for item in answer:
            if isinstance(item, Waiting):
                yield writer.waiting(item)
                continue
            seq, event, attempt = item
            match event:
                case Failed():
                    data = writer.problem(of_failed(event))
                case Finished(reason=FinishReason.CANCELLED):
                    data = writer.problem(CANCELLED)
                case _:
                    data = writer.event(event)
            if skip and seq > after.seq:
                if (count := data.count(END)) <= skip:
                    data, skip = b"", skip - count
                else:
                    after, skip = Place(seq - 1, skip), 0
            # What was read before is written once more, since the writer goes by it, and dropped.
            if seq > after.seq:
                if data:
                    yield identified(seq, attempt, data, after) if numbered else data
                elif seq % BREATHER == 0:
                    await asyncio.sleep(0)
            elif seq == 0:
                yield data
            elif seq % BREATHER == 0:
                await asyncio.sleep(0)
            if isinstance(event, TERMINAL):
                return
    except Stopped:
        yield writer.broken(STOPPING)
    except TasksError as error:
        if isinstance(error, QueueUnavailable):
            log.warning("an answer was lost with the queue: %s", error.detail, extra={"job": answer.job})
        yield writer.broken(of_error(error))
    except Exception:
        log.exception("an answer broke off", extra={"job": answer.job})
        yield writer.broken(INTERNAL)
    else:
        log.error("an answer ended without its last event", extra={"job": answer.job})
        yield writer.broken(INTERNAL)


class AnswerStream(EventSourceResponse):
    """An answer streamed to one client, and closed in every case: at its end, when the client leaves, stalls or
    was gone before the first byte, and when the server stops. From its first header on the client knows its job.

    Calling it waits for the event that decides the status of a client who does not know the job yet, and raises `ClientGone`,
    `HttpProblem` and as `Answer.first` does while nothing was sent. All else that can be done by then is done.
    """

    def __init__(
        self,
        answer: Answer,
        writer: Writer,
        drain: Drain,
        *,
        headers: Mapping[str, str],
        stalled: float,
        after: Place = BEGINNING,
        skip: int = 0,
        lines: bool = False,
    ) -> None:
        """`stalled` is how many seconds a client may leave the stream unread. `after` is how far it has read before, or `skip`
        is how many frames.

        With `lines` each frame is a line of JSON, which has no id.
        """
        self.answer = answer
        self.drain = drain
        grace = {GRACE: f"{answer.grace:g}"} if answer.grace else {}
        self._frames = frames(answer, writer, after, skip=skip, numbered=not lines)
        super().__init__(
            self._frames,
            media_type=LINES if lines else EVENT_STREAM,
            headers={"cache-control": "no-cache", **grace, **headers},
            # The relay says when the line has been silent for long, and where the job stands.
            ping=0,
        )
        self._stalled = stalled
        # The library's own `keep-alive` would contradict the server's `close` while it shuts down.
        del self.headers["connection"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The library's own would have a group of tasks begin before a byte goes out, and from then on for ever look at a flag
        # twice a second.
        over = first_of(partial(self._listen_for_disconnect, receive), self.drain.cut.wait)
        try:
            with self.drain.holding(self.answer):
                await unless(over, self._say(send))
        except Interrupted:
            if not self.answer.known:
                raise ClientGone from None
        except Stopped:
            raise HttpProblem(replace(STOPPING, job=self.answer.job)) from None
        except SendTimeoutError:
            log.warning("a client stopped reading its stream", extra={"job": self.answer.job})
        finally:
            await close(self.answer)

    async def _say(self, send: Send) -> None:
        if not self.answer.known:
            await self.answer.first()
            self.answer.known = True
        # The library's own has a timer, a word for a log and a look at the kind of frame for each token.
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames), Sending(self._stalled) as sending:
            async for frame in self._frames:
                sending.since = sending.now()
                await send({"type": "http.response.body", "body": frame, "more_body": True})
                sending.since = None
            sending.since = sending.now()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Sending:
    """Ends its block with `SendTimeoutError` when one thing that is sent there takes longer than so many seconds. It has one
    timer for all of them: one for each token would be a tenth of its way through this process."""

    def __init__(self, seconds: float) -> None:
        self.since: float | None = None
        """When what is being sent was begun, as `now` tells; None in between."""
        self.now = asyncio.get_running_loop().time
        self._seconds = seconds
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> Sending:
        await self._limit.__aenter__()
        self._look_at(self.now() + self._seconds)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._timer.cancel()
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise SendTimeoutError from late

    def _look_at(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        now = self.now()
        due = (now if self.since is None else self.since) + self._seconds
        if due > now:
            self._look_at(due)
        else:
            self._limit.reschedule(now)
