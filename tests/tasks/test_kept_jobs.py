"""What a front keeps beside a job: there as long as its record, and gone when it is to be forgotten."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, Renewal, claim_next, renew
from tasks.clock import EXPIRE_AGAIN
from tasks.errors import JobNotFound
from tasks.events import Finished, FinishReason, Queued, Started, TextDelta, Timings, Usage
from tasks.jobs import JobState, Kept, Lane, Rendering, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
RENDERING = Rendering("responses", b"{}")
END = Finished(FinishReason.STOP, Usage(1, 1), Timings())


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


async def accept(store: JobStore, kept: Kept | None) -> str:
    job = new_job_id()
    await store.accept(*(job, "echo", HELLO), lane=Lane.BACKGROUND, owner="key:a", rendering=RENDERING, kept=kept)
    return job


def claim(client: redis.Redis) -> Claim:
    held = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert held is not None
    return held


def answer(client: redis.Redis, held: Claim) -> None:
    with EventWriter(client, held.job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.write((TextDelta("hi"),))
        writer.end(END)


def expiries(client: redis.Redis, job: str) -> list[int]:
    """Seconds until each of a job's keys is gone; -1 where it stays, -2 where it is not there."""
    return [client.ttl(key) for key in (keys.job(job), keys.events(job), keys.kept(job))]


async def test_what_is_kept_can_be_asked_for(store: JobStore, client: redis.Redis) -> None:
    """From acceptance on, with what was said so far; it and the record stay for the time that was asked for."""
    job = await accept(store, Kept(b"data", 900))
    found = await store.kept(job)
    assert (found.owner, found.data, found.rendering, found.state, found.events) == (
        *("key:a", b"data", RENDERING, JobState.QUEUED),
        (Queued(),),
    )
    assert expiries(client, job) == [-1, -1, -1]
    answer(client, claim(client))
    found = await store.kept(job)
    assert found.state is JobState.FINISHED
    assert found.events == (Queued(), Started("w", "b"), TextDelta("hi"), END)
    assert all(880 < left <= 900 for left in expiries(client, job))


async def test_nobody_need_read_it(store: JobStore, client: redis.Redis) -> None:
    """Readers come and leave, and the job goes on."""
    job = await accept(store, Kept(b"data", 900))
    held = claim(client)
    await store.attend(job, "api:a/1")
    assert await store.leave(job, "api:a/1") == 0
    assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED


async def test_a_job_of_which_nothing_is_kept_is_not_found(store: JobStore, client: redis.Redis) -> None:
    """Nor is one that there never was; its record stays as long as any."""
    job = await accept(store, None)
    for each in (job, new_job_id()):
        with pytest.raises(JobNotFound):
            await store.kept(each)
    answer(client, claim(client))
    assert all(-2 <= left <= 60 for left in expiries(client, job))


async def test_a_waiting_job_is_forgotten(store: JobStore, client: redis.Redis) -> None:
    """It never runs, and nothing is kept of it."""
    job = await accept(store, Kept(b"data", 900))
    await store.forget(job)
    with pytest.raises(JobNotFound):
        await store.kept(job)
    assert claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60) is None
    assert max(expiries(client, job)) <= 2


async def test_a_running_job_is_forgotten(store: JobStore, client: redis.Redis) -> None:
    """What is kept goes at once, the job is told to end, and its record goes when it has."""
    job = await accept(store, Kept(b"data", 900))
    held = claim(client)
    await store.forget(job)
    assert not client.exists(keys.kept(job))
    assert renew(client, held, 60, "decode", 0) is Renewal.CANCELLED
    answer(client, held)
    assert max(expiries(client, job)) <= 2


async def test_an_ended_job_is_forgotten(store: JobStore, client: redis.Redis) -> None:
    """For good; one that is not there cannot be."""
    job = await accept(store, Kept(b"data", 900))
    answer(client, claim(client))
    await store.forget(job)
    assert max(expiries(client, job)) <= 2
    with pytest.raises(JobNotFound):
        await store.forget(new_job_id())


async def test_a_clock_that_went_back_keeps_nothing_longer(store: JobStore, client: redis.Redis) -> None:
    """What is kept goes with its record."""
    job = await accept(store, Kept(b"data", 900))
    answer(client, claim(client))
    for key in (keys.job(job), keys.events(job), keys.kept(job)):
        client.expire(key, 10_000)
    EXPIRE_AGAIN.run(client, [keys.job(job)])
    assert all(880 < left <= 900 for left in expiries(client, job))
