"""A queue that is full, and what it knows of when a place will be free."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, hand_back
from tasks.errors import QueueFull
from tasks.jobs import Lane, Room, new_job_id
from tasks.store import JobStore
from tests.tasks.jobs import DONE, HELLO, accept, claim, write

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("standing")]


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


async def test_a_full_queue_refuses_in_the_same_step(store: JobStore, client: redis.Redis) -> None:
    """Of many requests at once, exactly as many as fit are accepted; the others leave nothing behind."""
    results = await asyncio.gather(*(accept(store) for _ in range(40)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert len(refused) == 35 and len(results) - len(refused) == 5
    assert all(error.retry_after <= 60 for error in refused)
    assert client.zcard(keys.waiting("echo")) == 5
    assert len(client.keys("rl:{*")) == 10


def since(client: redis.Redis, held: Claim, seconds: int) -> None:
    """As if the claim had been made so long ago."""
    now = int(client.get(keys.CLOCK).partition(b":")[2])  # type: ignore[union-attr]
    client.hset(keys.job(held.job), "started", now - seconds * 1000)


async def taken(store: JobStore, client: redis.Redis, seconds: int) -> Claim:
    """A job that a worker has had for so long."""
    await accept(store)
    held = claim(client)
    assert held is not None
    since(client, held, seconds)
    return held


async def came_too_late(store: JobStore) -> float:
    """Fill the queue; after how many seconds the next one is told to come again."""
    for _ in range(6):
        try:
            await accept(store)
        except QueueFull as full:
            return full.retry_after
    raise AssertionError("the queue has no end")


async def test_a_full_queue_knows_when_a_place_is_free(store: JobStore, client: redis.Redis) -> None:
    """After as long as the model's jobs have lately taken, the newest counting most, over the workers there are."""
    for seconds in (40, 20):
        with write(client, await taken(store, client, seconds)) as writer:
            writer.end(DONE)
    assert client.pttl(keys.PACE) > 0  # it says "lately"
    await taken(store, client, 0)
    assert await came_too_late(store) == 35  # a quarter of the way from 40 to 20
    claim(client, worker="another")
    assert await came_too_late(store) == 17.5


async def test_an_accepted_job_knows_how_full_the_queue_is(store: JobStore, client: redis.Redis) -> None:
    """Places in all, those left, and how long the waiting ones will take."""
    client.hset(keys.PACE, "echo", 8000)
    rooms = [(await store.accept(new_job_id(), "echo", HELLO, lane=Lane.INTERACTIVE, owner="")).room for _ in range(3)]
    assert rooms == [Room(5, 4, 8.0), Room(5, 3, 16.0), Room(5, 2, 24.0)]
    claim(client)
    claim(client, worker="another")
    accepted = await store.accept(new_job_id(), "echo", HELLO, lane=Lane.INTERACTIVE, owner="")
    assert (accepted.place, accepted.standing.running, accepted.room) == (1, 2, Room(5, 3, 8.0))


async def test_a_long_job_is_expected_to_go_on(store: JobStore, client: redis.Redis) -> None:
    """Before any has ended, too: what runs for long is likely to run for as long again. A minute is the longest."""
    held = await taken(store, client, 0)
    since(client, held, 20)
    assert await came_too_late(store) == 20
    since(client, held, 900)
    assert await came_too_late(store) == 60


async def test_a_full_queue_of_an_untried_model(store: JobStore) -> None:
    """Nothing has run yet, so it is being loaded."""
    assert await came_too_late(store) == 10


async def test_only_what_held_a_worker_is_counted(store: JobStore, client: redis.Redis) -> None:
    """Not how long jobs waited that were cancelled, nor a claim that went back to the queue."""
    held = await taken(store, client, 50)
    hand_back(client, "echo", held.job, held.token, "lost", crashed=True)
    await store.cancel(held.job, "test")
    assert not client.exists(keys.PACE)
