"""Finds workers whose process lives and does not breathe any more, or takes no calls any more, and ends them.

A worker sees to it by itself that its engine makes progress. What it cannot see is its own end as a thinking being: a
stopped process, a frozen interpreter, a driver's call that never returns and lets nothing else run.

Only the child with the engine breathes. Whether Celery's parent lives shows by what it does: while there are calls for
its model and its child is free, it takes one at once. So do those of other boards, so calls that stay are no matter of luck.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import cast

import msgspec
import redis
from redis.exceptions import OutOfMemoryError

from tasks import keys, presence
from tasks.board.workers import Workers
from tasks.instances import model_of

log = logging.getLogger("rockchipllama.board")

SILENCE = 60.0
"""Seconds without a breath after which a worker is stuck: thirty breaths."""
FIRST_BREATH = 120.0
"""Seconds a worker may take to its first breath. It waits for a predecessor's orphans, and reads its libraries."""

IGNORING = 30.0
"""Seconds for which a free worker may leave calls lying while jobs wait for its model."""


@dataclass
class _Pulse:
    process: int
    breath: bytes | None
    """As it was last read. It begins with the time, so each one differs from the one before."""
    since: float
    """When it last changed, or could not be read, in monotonic seconds."""
    breathes: bool = False
    answered: int | None = None
    """Calls the worker had answered when it was first seen to leave others lying."""
    ignoring: float | None = None
    """When that was; none when it is not doing so."""


class Watchdog:
    """Looks at the breaths of one board's workers. `look` is called often, and all of it by one thread."""

    def __init__(
        self,
        client: redis.Redis,
        board: str,
        workers: Workers,
        *,
        silence: float = SILENCE,
        first_breath: float = FIRST_BREATH,
        ignoring: float = IGNORING,
    ) -> None:
        self._client = client
        self._board = board
        self._workers = workers
        self._silence = silence
        self._first_breath = first_breath
        self._ignoring = ignoring
        self._pulses: dict[str, _Pulse] = {}
        self._looked = time.monotonic()

    def forgive(self) -> None:
        """Count everything anew: while Redis is away, nobody can be heard."""
        for pulse in self._pulses.values():
            pulse.since = time.monotonic()
            pulse.ignoring = None

    def look(self) -> None:
        """Kill the workers that are stuck. Raises what the client raises."""
        living = self._workers.living()
        self._pulses = {model: pulse for model, pulse in self._pulses.items() if pulse.process == living.get(model)}
        breaths = self._read(list(living))
        lying = self._with_calls_lying(list(living))
        now = time.monotonic()
        if now - self._looked > self._silence / 2:
            self.forgive()  # this process was stopped itself, or Redis was away
        self._looked = now
        for model, process in living.items():
            breath = breaths[model]
            pulse = self._pulses.setdefault(model, _Pulse(process, breath, now))
            if model not in lying:
                pulse.ignoring = None
            if breath is not None and breath != pulse.breath:  # none: one that is silent is soon forgotten
                self._hear(pulse, breath, now, model in lying)
                if pulse.ignoring is not None and now - pulse.ignoring > self._ignoring:
                    self._kill(model, pulse, "is free but has taken none of the calls that wait", now - pulse.ignoring)
            elif now - pulse.since > (self._silence if pulse.breathes else self._first_breath):
                self._kill(model, pulse, "lives but has not breathed", now - pulse.since)

    def _hear(self, pulse: _Pulse, breath: bytes, now: float, calls_lie: bool) -> None:
        """Note a new breath, and whether the worker leaves calls lying that it could take."""
        try:
            worker = presence.read_breath(breath)
        except msgspec.DecodeError:
            answered = None  # another version's, of which nothing is known
        else:
            answered = worker.answered if worker.state != "loading" else None
        if not calls_lie or answered is None:
            pulse.ignoring = None
        # Whoever was silent for a while may have been held up with all it does.
        elif pulse.ignoring is None or answered != pulse.answered or now - pulse.since > self._ignoring / 2:
            pulse.ignoring, pulse.answered = now, answered
        pulse.breath, pulse.since, pulse.breathes = breath, now, True

    def _kill(self, model: str, pulse: _Pulse, what: str, seconds: float) -> None:
        log.error(
            "the worker of %s pid=%d %s for %.0f s: it is stuck and was killed", model, pulse.process, what, seconds
        )
        pulse.since, pulse.ignoring = time.monotonic(), None
        self._workers.kill(model, pulse.process)

    def _read(self, models: list[str]) -> dict[str, bytes | None]:
        if not models:
            return {}
        names = [f"{model}@{self._board}" for model in models]
        found = cast("list[bytes | None]", self._client.hmget(keys.PRESENCE, names))
        return dict(zip(models, found, strict=True))

    def _with_calls_lying(self, models: list[str]) -> set[str]:
        """The models for which a job waits and a call lies in the queue.

        None while the memory is full: Celery has to note each call it takes, and cannot.
        """
        asked = self._client.pipeline(transaction=False)
        for model in models:
            asked.zcard(keys.waiting(model_of(model)))
            asked.llen(keys.calls(model_of(model)))
        counts = asked.execute()
        lying = {model for model, jobs, calls in zip(models, counts[::2], counts[1::2], strict=True) if jobs and calls}
        try:
            if lying:
                # Changes nothing, and is refused as those notes are.
                self._client.setrange(keys.ORDER, 0, "")
        except OutOfMemoryError:
            return set()
        return lying
