"""What heat means for a worker: it rests between the items of batches, and estimates go by how fast it is now."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast

import msgspec
import redis

from tasks import keys
from tasks.jobs import Lane
from tasks.lua import Script
from tasks.presence import BREATH, read_breath
from tasks.worker.job_run import JobRun
from tasks.worker.speeds import FEWEST

REST = 3.0
"""For how many times as long as an item took a worker of a hot board takes none."""
MOST_REST = 300.0
"""Seconds; a long item is not paid for with an hour."""
SLOWEST = 20.0
"""How many times as long jobs may be told to take; a job that hangs is no measure."""


_SLOWED = Script(
    """
-- KEYS slowed   ARGV board slower-and-rests ttl-ms -> nothing.  Past the append-only file, as breaths are.
redis.set_repl(redis.REPL_NONE)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""
)


class Pacing:
    """How a worker goes about its board's heat. `look` is called with each breath, by one thread; the rest by any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._rests_until = 0.0
        self._seen: tuple[JobRun, float, int] | None = None
        """The run in hand at the last look, when that was, and how many tokens it had said."""
        self.hot = False
        self.slower = 1.0
        """How many times as long a job takes as jobs lately did."""

    def look(self, hot: bool, runs: tuple[JobRun, ...], usual: float | None) -> None:
        """Heat slows the board down, or does not; `usual` is how many tokens per second the worker has lately said."""
        with self._lock:
            self.hot = hot
            now, before = self._clock(), self._seen
            # Those that share a run are slower each, and more at once.
            self._seen = (runs[0], now, runs[0].said) if len(runs) == 1 else None
            if not hot:
                self.slower, self._rests_until = 1.0, 0.0
            elif before is not None and self._seen is not None and before[0] is self._seen[0] and usual:
                tokens, seconds = self._seen[2] - before[2], now - before[1]
                if tokens >= FEWEST and seconds >= BREATH / 2:
                    self.slower = round(min(SLOWEST, max(1.0, usual * seconds / tokens)), 2)

    def served(self, lane: str, seconds: float) -> None:
        """A job, with those that shared its run, has held the engine for so long."""
        with self._lock:
            if self.hot and lane == Lane.BATCH:
                self._rests_until = self._clock() + min(MOST_REST, REST * seconds)

    @property
    def rest(self) -> float:
        """For how many seconds more it takes no item of a batch."""
        with self._lock:
            return max(0.0, self._rests_until - self._clock())

    def tell(self, client: redis.Redis, model: str, board: str) -> None:
        """Have estimates go by it, while the board is hot. Raises what the client raises."""
        if self.hot:
            _SLOWED.run(client, [keys.slowed(model)], board, f"{self.slower:g} {1 + REST:g}", int(BREATH * 5000))


def is_hot(client: redis.Redis, board: str) -> bool:
    """Whether the board's last breath says that heat slows it down. Raises what the client raises."""
    kept = cast("bytes | None", client.hget(keys.PRESENCE, f"board:{board}"))
    try:
        machine = read_breath(kept).machine if kept else None
    except msgspec.DecodeError:
        return False  # a board of another version; whoever reads the roster names it
    return machine is not None and bool(machine.hot)
