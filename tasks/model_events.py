"""Loads and unloads of models, counted for the whole service."""

from __future__ import annotations

import threading
from collections import Counter
from enum import StrEnum

import redis

from tasks import keys
from tasks.lua import Script

_COUNT = Script(
    """
-- KEYS counts   ARGV field amount ... -> nothing.  Past the append-only file, as all counts.
redis.set_repl(redis.REPL_NONE)
for place = 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[place], ARGV[place + 1]) end
redis.call('PEXPIRE', KEYS[1], 2592000000)
"""
)


class Unload(StrEnum):
    """Why a model was unloaded."""

    ASKED = "asked"
    IDLE = "idle"
    """Nobody had asked for it in its time."""
    ROOM = "room"
    """Another one took its place."""
    GONE = "gone"
    """Its files are gone, or its board is drained."""


class ModelEvents:
    """What happened to models in this process and was not counted yet. From any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def loaded(self, model: str) -> None:
        """It was loaded."""
        with self._lock:
            self._counts[f"loads {model}"] += 1

    def unloaded(self, model: str, why: Unload) -> None:
        """It is unloaded."""
        with self._lock:
            self._counts[f"unloads {model} {why}"] += 1

    def report(self, client: redis.Redis) -> None:
        """Have them counted. Raises what the client raises; they are counted by the next report then."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            _COUNT.run(client, [keys.COUNTS], *(word for pair in counts.items() for word in pair))
        except BaseException:
            with self._lock:
                self._counts += counts
            raise
