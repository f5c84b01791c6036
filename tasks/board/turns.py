"""Turns at the memory of a board: a model that always has something to do gives way to one whose jobs wait for room."""

from __future__ import annotations

import logging
from typing import cast

import redis

from tasks import keys
from tasks.board.keeping import Keeping
from tasks.board.workers import Workers
from tasks.jobs import Lane
from tasks.standing import Gate, read_gate

log = logging.getLogger("rockchipllama.board")

_LANES = tuple(Lane)


class Turns:
    """Who gives way to whom. A model whose jobs are in an earlier lane goes first; where both have such jobs, they take turns."""

    def __init__(self, client: redis.Redis, board: str, workers: Workers, keeping: Keeping, least: float) -> None:
        """`least` is in seconds: how long jobs wait before another model gives way to theirs, and how long that one was there."""
        self._client = client
        self._board = board
        self._workers = workers
        self._keeping = keeping
        self._least = least
        self.next: str | None = None
        """The model that others have given way to: no other one takes the room."""

    def giving_way(self, model: str, waited: float) -> dict[str, bool]:
        """The busy models that give way to `model`, whose jobs have waited so many seconds for room, and whether the job in hand
        is to end first. The one that is loaded for the longest time comes first. Raises what the client raises."""
        mine = self._urgency(model)
        if mine is None:
            return {}
        found = {}
        stayed = self._workers.sizes(longer_than=self._least)
        for other in self._keeping.answering(self._workers.oldest()):
            theirs = self._urgency(other)
            if theirs is not None and mine < theirs:
                found[other] = False
            elif mine == theirs and waited > self._least and other in stayed:
                found[other] = True
        return found

    def overtakes(self, model: str) -> bool:
        """Whether jobs of `model` are in an earlier lane than all of those that have the next turn: then that is theirs, and no
        job in hand may end first. Raises what the client raises."""
        mine, theirs = self._urgency(model), self._urgency(self.next) if self.next is not None else None
        if mine is None or theirs is None or mine >= theirs:
            return False
        self.next = model
        self.hurry()
        return True

    def tell(self, model: str, seconds: float) -> None:
        """Have a worker that is to stop end its job in hand first, for at most so long. Raises what the client raises."""
        for name in self._workers.names(model):
            self._client.publish(keys.control(f"{name}@{self._board}"), f"finish {seconds:.0f}")

    def hurry(self) -> None:
        """Have those hand their jobs back now that were to end them first. Raises what the client raises."""
        for model in self._workers.leaving():
            for name in self._workers.names(model):
                self._client.publish(keys.control(f"{name}@{self._board}"), "hand-over")

    def _urgency(self, model: str) -> int | None:
        """The earliest lane of the model's jobs that run, and of the one that is next unless its queue is paused; None where it
        has none."""
        jobs = cast("list[bytes]", self._client.zrange(keys.running(model), 0, -1))
        if read_gate(cast("bytes | None", self._client.hget(keys.GATES, model))) is not Gate.PAUSED:
            jobs += cast("list[bytes]", self._client.zrange(keys.waiting(model), 0, 0))
        lanes = (cast("bytes | None", self._client.hget(keys.job(job.decode()), "lane")) for job in jobs)
        return min((_LANES.index(Lane(lane.decode())) for lane in lanes if lane), default=None)
