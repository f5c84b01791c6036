"""The memory of parked conversations, which a board's workers give back when another model needs it, and take none of while one
is loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis

from tasks import keys
from tasks.roster import read_roster

PATIENCE = 3.0
"""Seconds the workers get for it."""
PAUSE = 15
"""Seconds for which they park nothing once they were told: several times as long as until they are told again."""


class Unparking:
    """Asks the workers of one board."""

    def __init__(self, client: redis.Redis, board: str, leaving: threading.Event) -> None:
        """Once `leaving` is set nobody is waited for."""
        self._client = client
        self._board = board
        self._leaving = leaving

    def until(self, fits: Callable[[int], bool]) -> bool:
        """Whether it fits, perhaps once workers have given back what is parked; they keep it where that would not do. `fits` is
        told the bytes that are still to be given back. Raises what the client raises."""
        if fits(0):
            return True
        workers = [worker for worker in read_roster(self._client).workers if worker.board == self._board]
        parked = {worker.name: worker.parked for worker in workers if worker.parked}
        if not fits(sum(parked.values())):
            return False
        for name in parked:
            self._client.publish(keys.control(name), "unpark")
        for _ in range(int(PATIENCE / 0.05) if parked else 0):
            if self._leaving.wait(0.05):
                break
            if fits(0):
                return True
        return False

    def pause(self, promised: bool) -> None:
        """Have the workers park nothing for now, where memory was `promised` to a model or one of them loads its own: the kernel
        does not miss it yet. Raises what the client raises."""
        workers = [worker for worker in read_roster(self._client).workers if worker.board == self._board]
        if promised or any(worker.state == "loading" for worker in workers):
            for worker in workers:
                self._client.publish(keys.control(worker.name), f"pause-parking {PAUSE}")
