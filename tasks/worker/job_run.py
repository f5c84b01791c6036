"""One job in the hands of a worker: how far it is, and how it is told to end."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from npu.engine import Abortable
from tasks.claims import Claim
from tasks.errors import megabytes
from tasks.events import Event, Failed, FailureCode, Finished, FinishReason, Timings
from tasks.jobs import Phase
from tasks.stream import ClaimLost, EventWriter, RecordedPiece
from tasks.worker.generate import Totals
from tasks.worker.settings import WorkerSettings
from tasks.worker.together import Seat

log = logging.getLogger("rockchipllama.jobs")

GOES_ON = ("stop", "pause")
"""Reasons to end a run whose job goes on elsewhere or later."""


class JobRun:
    """The sink of a run, and what other threads may do to it. Every method may be called from any thread."""

    def __init__(self, claim: Claim, settings: WorkerSettings, record_limit: int) -> None:
        """`record_limit` is how many bytes the job's record may grow to."""
        self.claim = claim
        self.totals = Totals()
        self.phase = Phase.LOADING
        self.claimed = time.monotonic()
        self.entered = {self.phase: self.claimed}
        """When it first came into each phase, by the monotonic clock."""
        self.done = 0
        """Tokens of the prompt that are prefilled."""
        self.goes_to = ""
        """The board that reads it ahead, and is to have it next."""
        self.said = 0
        """Tokens that the engine has said in this run."""
        self.can_be_paused = True
        """False once it must not be: whoever claimed it next could not go on with its answer."""
        self.before = 0
        """Bytes of the record that earlier claims have written."""
        self.load_ms = 0.0
        self.seat: Seat | None = None
        """Where it shares runs with other jobs."""
        self.reason: str | None = None
        """Why it is to end early; None while nobody asked."""
        self.writer: EventWriter
        self._limits = {
            Phase.LOADING: settings.load_stall,
            Phase.PREFILL: settings.prefill_stall,
            Phase.DECODE: settings.token_stall,
        }
        self._record_limit = record_limit
        self._work: Abortable | None = None
        self._progressed = time.monotonic()
        self._given_up: float | None = None
        """When it was told to end for good, in monotonic seconds."""
        self._abandoned_prefill = settings.abandoned_prefill
        self._lock = threading.Lock()

    @property
    def cancelled(self) -> bool:
        """Somebody asked for its end, for whatever reason."""
        return self.reason is not None

    @property
    def read_again(self) -> int:
        """Tokens that were prefilled though an earlier claim had done so."""
        if self.claim.sent:
            return self.totals.read_again
        return max(0, min(self.claim.read, self.done) - self.totals.cached_tokens)

    @property
    def stalled(self) -> float | None:
        """The limit in seconds that passed without progress; None while all is well."""
        if self.writer.waits or (self.seat is not None and self.seat.waits):
            self._progressed = time.monotonic()  # Redis keeps the engine waiting, or others have it
        limit = self._limits[self.phase]
        return limit if time.monotonic() - self._progressed > limit else None

    @property
    def blocks(self) -> bool:
        """It prefills for nobody, for longer than others need wait for that: the engine cannot be told to stop."""
        given_up = self._given_up
        return (
            given_up is not None
            and self.phase is Phase.PREFILL
            and time.monotonic() - given_up > self._abandoned_prefill
        )

    def enter(self, phase: Phase) -> None:
        """The run is in this phase now."""
        self.phase = phase
        self._progressed = time.monotonic()
        self.entered.setdefault(phase, self._progressed)

    def begin(self, work: Abortable) -> bool:
        """See `Sink.begin`."""
        with self._lock:
            self._work = work
            self.enter(Phase.PREFILL)
            return self.reason is None

    def prefilled(self, tokens: int) -> None:
        """See `Sink.prefilled`."""
        self.done = tokens
        self._progressed = time.monotonic()

    def write(self, events: tuple[Event, ...], piece: RecordedPiece | None = None) -> None:
        """See `Sink.write`."""
        if piece is not None:
            self.said += 1
            self.enter(Phase.DECODE)
        self.writer.write(events, piece)
        if self.before + self.writer.size > self._record_limit:
            self.cancel("too large")

    def cancel(self, reason: str) -> None:
        """End it early: abort what runs; while the model still loads, end the job at once. The first reason stays, but a run
        that is only to be handed back can still be told that its job is to end.

        Reasons are `cancelled`, `deadline`, `too large`, `lost` (another worker has the job), `pause` (a chat waits) and
        `stop` (this worker is to leave, and waits for Redis no longer). With the last two it hands the job back, and a load
        goes on.
        """
        if reason == "stop":
            self.writer.hurry()
        with self._lock:
            if self.reason is not None and (self.reason not in GOES_ON or reason in GOES_ON):
                return
            if reason == "pause" and not self.can_be_paused:
                return
            self.reason = reason
            if reason not in GOES_ON:
                self._given_up = time.monotonic()
            work = self._work
        if work is not None:
            work.abort()
        elif self.phase is Phase.LOADING and reason not in GOES_ON:
            with suppress(ClaimLost):  # it may have ended in this very moment
                self.writer.end(self.last_event())

    def last_event(self, reason: FinishReason = FinishReason.CANCELLED) -> Finished | Failed:
        """The event that ends the job, from what is known now."""
        if self.reason == "deadline":
            return Failed(
                FailureCode.DEADLINE,
                "The request's deadline passed before its answer was complete, and it was stopped.",
            )
        if self.reason == "too large":
            return Failed(
                FailureCode.ANSWER_TOO_LARGE,
                f"The answer grew beyond the {megabytes(self._record_limit)} that a job's record holds, and was stopped. Ask "
                "for fewer or shorter answers, in several requests perhaps.",
            )
        totals = self.totals
        return Finished(
            FinishReason.CANCELLED if self.cancelled else reason,
            totals.usage(),
            Timings(
                float(self.claim.waited),
                round(self.load_ms, 3),
                round(totals.prefill_ms, 3),
                round(totals.decode_ms + self.claim.decoded, 3),
                self.seat.together if self.seat is not None else 1,
                round(totals.memory_mb, 2),
                float(self.claim.decoded),
                round((time.monotonic() - self.claimed) * 1000, 3),
            ),
        )


def log_end(run: JobRun, last: Finished | Failed) -> str:
    """Have the log say how it ended; the same in a few words, for people who watch."""
    claim, totals = run.claim, run.totals
    if isinstance(last, Failed):
        return f"{claim.job} failed: {last.code}"
    facts = {
        "job": claim.job,
        "model": claim.model,
        "lane": claim.lane,
        "prompt": totals.prompt_tokens,
        "cached": totals.cached_tokens,
        "parked": totals.parked_tokens,
        "tokens": totals.completion_tokens,
        "queued_ms": round(last.timings.queued_ms),
        "load_ms": round(run.load_ms),
        "prefill_ms": round(totals.prefill_ms),
        "decode_ms": round(totals.decode_ms),
    }
    log.info("job %s", "cancelled" if last.reason is FinishReason.CANCELLED else "finished", extra=facts)
    return f"{claim.job} {last.reason}: {totals.completion_tokens} tokens"
