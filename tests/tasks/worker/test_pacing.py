"""What heat means for a worker, by a clock of its own and on a real Valkey."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import claim_next
from tasks.jobs import Lane, new_job_id
from tasks.presence import Machine, Presence, breathe
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.worker.job_run import JobRun
from tasks.worker.pacing import MOST_REST, REST, SLOWEST, Pacing, is_hot


class Worker:
    """Its pacing, and a run that says as many tokens as a test wants."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pacing = Pacing(lambda: self.now)
        self.run = SimpleNamespace(said=0)

    def look(self, *, hot: bool = True, tokens: int = 0, seconds: float = 2.0, runs: int = 1) -> float:
        self.now += seconds
        self.run.said += tokens
        self.pacing.look(hot, (cast(JobRun, self.run),) * runs, 30.0)
        return self.pacing.slower


def test_it_rests_after_an_item_while_its_board_is_hot() -> None:
    """For longer after a longer one, within bounds; after a chat not at all, and no longer than the heat lasts."""
    worker = Worker()
    worker.pacing.served(Lane.BATCH, 10)
    assert worker.pacing.rest == 0
    worker.look()
    worker.pacing.served(Lane.INTERACTIVE, 10)
    worker.pacing.served(Lane.BACKGROUND, 10)
    assert worker.pacing.rest == 0
    worker.pacing.served(Lane.BATCH, 10)
    assert worker.pacing.rest == 10 * REST
    worker.look(seconds=10 * REST - 1)
    assert worker.pacing.rest == 1
    worker.pacing.served(Lane.BATCH, 10_000)
    assert worker.pacing.rest == MOST_REST
    worker.look(hot=False)
    assert worker.pacing.rest == 0


def test_how_slow_it_is_is_measured_while_it_speaks() -> None:
    """Of a cool board, of runs that share an engine, and of a few tokens nothing is made."""
    worker = Worker()
    assert worker.look(hot=False, tokens=20) == 1
    assert worker.look(tokens=30) == 2  # 15 in a second, of 30
    assert worker.look(tokens=2) == 2
    assert worker.look(tokens=30, runs=2) == 2
    assert worker.look(tokens=60) == 2  # nothing to compare with: before it, two shared the engine
    assert worker.look(tokens=100) == 1
    assert worker.look(tokens=4, seconds=600) == SLOWEST
    assert worker.look(hot=False) == 1


def test_a_board_is_as_hot_as_its_last_breath_says(client: redis.Redis) -> None:
    """One that says nothing, or nothing that can be read, is not."""
    assert not is_hot(client, "one")
    breathe(client, Presence(name="board:one", board="one", machine=Machine(hot=True)))
    assert is_hot(client, "one") and not is_hot(client, "two")
    breathe(client, Presence(name="board:one", board="one", machine=Machine()))
    assert not is_hot(client, "one")
    client.hset(keys.PRESENCE, "board:one", b"1:{")
    assert not is_hot(client, "one")


@pytest.mark.anyio
async def test_estimates_go_by_the_speed_of_now(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """A hot board's jobs are told to take as much longer as they do, items of batches with its rests; for a while only."""
    store = JobStore(aclient, queue_limit=10, job_ttl=60, deadline=600)
    pacing = Pacing()
    jobs = [new_job_id() for _ in range(3)]
    for job, lane in zip(jobs, (Lane.INTERACTIVE, Lane.INTERACTIVE, Lane.BATCH), strict=True):
        await store.accept(job, "echo", ChatRequest((Message("user", "x"),)), lane=lane, owner="a")
    assert claim_next(client, "echo", worker="w", board="one", child=1, call_id="c", lease=60) is not None
    client.hset(keys.PACE, "echo", 4000)

    async def waits() -> list[float | None]:
        return [(await store.view(job)).estimated_wait for job in jobs[1:]]

    pacing.tell(client, "echo", "one")
    assert await waits() == [4, 8]
    pacing.hot, pacing.slower = True, 1.5
    pacing.tell(client, "echo", "two")
    assert await waits() == [4, 8]
    pacing.tell(client, "echo", "one")
    assert await waits() == [6, 8 * 1.5 * (1 + REST)]
    assert 0 < client.pttl(keys.slowed("echo")) <= 10_000
