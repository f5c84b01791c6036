"""Hands back what the workers of this board held when they died. Celery's parent does so for its child; who does for it?"""

from __future__ import annotations

import time
from collections.abc import Iterable

import redis

from tasks.board.process import lives
from tasks.instances import model_of
from tasks.losses import holders, report_loss


class Losses:
    """The workers that have ended of late, and the jobs they may have left. All of it is used by one thread."""

    def __init__(self, client: redis.Redis, board: str, lease: float) -> None:
        """`lease` is in seconds; whatever is still held after one is the sweep's."""
        self._client = client
        self._board = board
        self._lease = lease
        self._ended: dict[str, float] = {}

    def note(self, names: Iterable[str]) -> None:
        """The workers of these names have ended, in whatever way."""
        self._ended |= dict.fromkeys(names, time.monotonic() + self._lease)

    def report(self) -> None:
        """End the claims of children that are gone. One that outlives its parent for a moment goes on, and so does a
        successor, which has the same name. Raises what the client raises."""
        for name, until in tuple(self._ended.items()):
            for holder in holders(self._client, model_of(name)):
                if holder.worker == f"{name}@{self._board}" and not lives(holder.child):
                    report_loss(self._client, model_of(name), holder)
            if time.monotonic() > until:
                del self._ended[name]
