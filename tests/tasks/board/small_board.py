"""A board of 8 GB whose workers do nothing but live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis

from npu.catalog import Catalog
from npu.model import Model
from tasks import keys, presence, roster
from tasks.board.agent import Agent
from tasks.board.settings import BoardSettings
from tasks.card import Card
from tasks.presence import Presence
from tasks.settings import TaskSettings
from tests.fakes.clock import Clock
from tests.stack import eventually

GIB = 1 << 30
SIZES = {"tiny": 0.5, "small": 1.0, "middle": 2.0, "large": 3.5, "huge": 5.0}
"""GiB that each model takes."""


class Board:
    """A board that is taken to have 8 GB and may use six, whose workers do nothing but live. Nobody but a test answers."""

    def __init__(self, client: redis.Redis, url: str, folder: Path, clock: Clock, **chosen: Any) -> None:
        self.client = client
        self.clock = clock
        self.models = {name: Model(id=name, engine="echo", folder=folder) for name in (*SIZES, "giant")}
        settings = TaskSettings(redis_url=url, data_dir=folder, models_dir=folder, board_name="one", memory_total=8192)
        self.agent = Agent(settings, BoardSettings(**chosen))
        self.agent._workers.command = lambda _: ["/bin/sh", "-c", "exec sleep 1000", "worker"]
        self.agent._demand._clock = self.agent._keeping._clock = clock.monotonic
        self.agent._announced.catalog = Catalog(tuple(self.models.values()))
        self.answered = 0
        for name in self.models:
            roster.announce(client, Card(id=name, board="one"))
        presence.breathe(client, Presence(name="board:one", board="one"))

    def breathe(self, name: str, state: str = "loaded") -> None:
        """What the worker of a model says of itself."""
        worker = Presence(name=f"{name}@one", board="one", model=name, state=state, answered=self.answered)
        presence.breathe(self.client, worker)

    def has(self, *names: str) -> None:
        """These are loaded, and rest since then, in this order."""
        for name in names:
            self.agent._loading.load(self.models[name])
            self.breathe(name)
            self.agent._keeping.over(self.agent._workers.living())

    def put_away(self, name: str) -> None:
        """The time of a model is over, and it is unloaded."""
        self.agent._keeping.ask(name, 0.0)
        self.agent._keeping.over(self.loaded())
        self.agent._loading.put_away(name)

    def job(self, model: str, state: str, lane: str = "interactive") -> None:
        """One more job of a model: `running` or `waiting`."""
        self.answered += 1
        job = f"{model}{self.answered}"
        self.client.zadd((keys.running if state == "running" else keys.waiting)(model), {job: self.answered})
        self.client.hset(keys.job(job), "lane", lane)

    def jobs_gone(self, model: str) -> None:
        """It has no jobs any more."""
        self.client.delete(keys.running(model), keys.waiting(model))

    def later(self, seconds: float) -> None:
        """So much time passes."""
        self.clock.now += seconds

    def loaded(self) -> set[str]:
        """The models that have a worker."""
        return set(self.agent._workers.living())

    def gone(self) -> None:
        """Wait until all are gone that were told to."""
        eventually(lambda: not self.agent._workers.leaving(), what="the end of those that leave")
