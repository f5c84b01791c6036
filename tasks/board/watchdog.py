"""Finds workers whose process lives and does not breathe any more, and ends them.

A worker sees to it by itself that its engine makes progress. What it cannot see is its own end as a thinking being: a
stopped process, a frozen interpreter, a driver's call that never returns and lets nothing else run.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import cast

import redis

from tasks import keys
from tasks.board.workers import Workers

log = logging.getLogger("rockchipllama.board")

SILENCE = 60.0
"""Seconds without a breath after which a worker is stuck: thirty breaths."""
FIRST_BREATH = 120.0
"""Seconds a worker may take to its first breath. It waits for a predecessor's orphans, and reads its libraries."""


@dataclass
class _Pulse:
    process: int
    breath: bytes | None
    """As it was last read. It begins with the time, so each one differs from the one before."""
    since: float
    """When it last changed, or could not be read, in monotonic seconds."""
    breathes: bool = False


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
    ) -> None:
        self._client = client
        self._board = board
        self._workers = workers
        self._silence = silence
        self._first_breath = first_breath
        self._pulses: dict[str, _Pulse] = {}
        self._looked = time.monotonic()

    def forgive(self) -> None:
        """Count every silence anew: while Redis is away, nobody can be heard."""
        for pulse in self._pulses.values():
            pulse.since = time.monotonic()

    def look(self) -> None:
        """Kill the workers that are stuck. Raises what the client raises."""
        living = self._workers.living()
        self._pulses = {model: pulse for model, pulse in self._pulses.items() if pulse.process == living.get(model)}
        breaths = self._read(list(living))
        now = time.monotonic()
        if now - self._looked > self._silence / 2:
            self.forgive()  # this process was stopped itself, or Redis was away
        self._looked = now
        for model, process in living.items():
            pulse = self._pulses.setdefault(model, _Pulse(process, breaths[model], now))
            if breaths[model] not in (None, pulse.breath):  # none: one that is silent is soon forgotten
                self._pulses[model] = _Pulse(process, breaths[model], now, breathes=True)
            elif now - pulse.since > (self._silence if pulse.breathes else self._first_breath):
                log.error(
                    "the worker of %s pid=%d lives but has not breathed for %.0f s: it is stuck and was killed",
                    *(model, process, now - pulse.since),
                )
                pulse.since = now
                self._workers.kill(model)

    def _read(self, models: list[str]) -> dict[str, bytes | None]:
        if not models:
            return {}
        names = [f"{model}@{self._board}" for model in models]
        found = cast("list[bytes | None]", self._client.hmget(keys.PRESENCE, names))
        return dict(zip(models, found, strict=True))
