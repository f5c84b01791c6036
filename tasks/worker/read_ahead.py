"""A job that another worker has in hand, read here before that one lets go of it: so its client does not wait for the prefill."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import cast

import redis

from npu.engine import Abortable
from npu.errors import EngineFailed, NpuError
from tasks import events, keys, requests
from tasks.claims import prompts_of
from tasks.connection import UNREACHABLE, text
from tasks.prompting.prepare import Prepared
from tasks.roster import read_roster
from tasks.stream import RecordedPiece
from tasks.worker import generate
from tasks.worker.begun import CannotContinue, read_begun
from tasks.worker.execution import owned
from tasks.worker.leisure import Leisure
from tasks.worker.slot import Slot

log = logging.getLogger("rockchipllama.jobs")


def free_worker(client: redis.Redis, model: str, board: str) -> tuple[str, str] | None:
    """The worker on another board than this that would read a prompt fastest, and has nothing to do, with its board; None where
    there is none."""
    found = read_roster(client)
    free = [
        worker
        for worker in found.workers
        if worker.model == model and worker.state == "loaded" and worker.board in {*found.boards} - {board}
    ]
    best = max(free, key=lambda worker: worker.prefill_tps or 0.0, default=None)
    return (best.name, best.board) if best is not None else None


class ReadAhead:
    """One run of a job up to its next token, in a thread of its own; the sink of it.

    Nothing of it is written: the claim is the other worker's. What the engine has read is in its cache when the job is claimed.
    """

    def __init__(self, client: redis.Redis, slot: Slot, leisure: Leisure, job: str, done: Callable[[], None]) -> None:
        """`slot` has its engine, and nobody else uses that until `end`, once `leisure` has let go of it. `done` is called once,
        whatever came of it."""
        self.cancelled = False
        self._client = client
        self._slot = slot
        self._leisure = leisure
        self._job = job
        self._done = done
        self._work: Abortable | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it has let go of the engine."""
        return not self._thread.is_alive()

    def end(self) -> None:
        """Have it let go of the engine, and wait for that. Twice is safe."""
        self._abort()
        self._thread.join()

    def begin(self, work: Abortable) -> bool:
        """See `Sink.begin`."""
        with self._lock:
            self._work = work
            return not self.cancelled

    def prefilled(self, tokens: int) -> None:
        """See `Sink.prefilled`."""

    def write(self, events: tuple[events.Event, ...], piece: RecordedPiece | None = None) -> None:
        """See `Sink.write`: with the first token the prompt is read."""
        if piece is not None:
            self._abort()

    def _abort(self) -> None:
        with self._lock:
            self.cancelled = True
            work = self._work
        if work is not None:
            work.abort()

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            self._read()
            log.info("job read ahead", extra={"job": self._job, "ms": round((time.monotonic() - begun) * 1000)})
        except EngineFailed as error:
            log.warning("the engine broke: %s", error, extra={"job": self._job})
            self._slot.close()
        except (*UNREACHABLE, NpuError, CannotContinue, requests.Unreadable, events.Unreadable) as error:
            log.info("a job could not be read ahead: %s", error, extra={"job": self._job})
        finally:
            self._done()

    def _read(self) -> None:
        self._leisure.end()
        if self.cancelled or not self._slot.loaded:
            return  # somebody else has the engine next, or it broke over that
        engine = self._slot.engine(lambda: None)
        kept = cast("dict[bytes, bytes]", self._client.hgetall(keys.job(self._job)))
        record = {text(name): value for name, value in kept.items()}
        if "request" not in record or text(record.get("language", b"")) != engine.tokenizer.digest:
            return  # it has ended, or its tokens are others here
        prepared = self._slot.preparer.prepare(requests.decode_request(record["request"]), prompts_of(record))
        if isinstance(prepared, Prepared):
            prepared = owned(prepared, text(record["owner"]), text(record["lane"]))
            begun = read_begun(self._client, self._job)
            generate.run(prepared, engine, self, generate.Totals(), begun, job=self._job)
