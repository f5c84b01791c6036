"""Jobs and those who read their answers: who keeps one going, and when nobody does any more."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, Renewal, claim_next, renew
from tasks.errors import JobNotFound
from tasks.events import Finished, FinishReason, Mark, Queued, Started, TextDelta, Timings, Usage
from tasks.jobs import JobState, Lane, Rendering, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter
from tests.stack import eventually
from tests.tasks.jobs import clock

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
RENDERING = Rendering("openai", b"{}")


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


async def accept(store: JobStore, *, reader: str | None = "api:a/1", grace: float = 0.0) -> str:
    job = new_job_id()
    await store.accept(
        *(job, "echo", HELLO),
        lane=Lane.INTERACTIVE,
        owner="",
        reader=reader,
        grace=grace,
        rendering=RENDERING,
    )
    return job


def claim(client: redis.Redis) -> Claim:
    held = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert held is not None
    return held


async def state(store: JobStore, job: str) -> JobState:
    return (await store.view(job)).state


async def test_the_last_who_leaves_ends_the_job(store: JobStore, client: redis.Redis) -> None:
    """As long as anybody reads it goes on, whoever that is; a running one is told to stop."""
    job = await accept(store)
    held = claim(client)
    attempt = int(held.token.rpartition("-")[2])
    attended = await store.attend(job, "api:b/1")
    assert (attended.model, attended.name, attended.last, attended.ended) == ("echo", "echo", Mark(2, attempt), False)
    assert attended.rendering == RENDERING
    await store.attend(job, "api:b/1")  # said twice, as after a lost reply
    assert await store.leave(job, "api:a/1") == 0
    assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED
    assert await store.leave(job, "api:nobody/1") == 0
    assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED
    assert await store.leave(job, "api:b/1") == 0
    assert renew(client, held, 60, "decode", 0) is Renewal.CANCELLED


async def test_a_waiting_job_that_nobody_reads_never_runs(store: JobStore, client: redis.Redis) -> None:
    """It ends where it waits."""
    job = await accept(store)
    await store.leave(job, "api:a/1")
    assert await state(store, job) is JobState.CANCELLED
    assert claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60) is None
    assert not client.hexists(keys.job(job), "readers")


async def test_a_grace_begins_when_the_last_has_left(store: JobStore, client: redis.Redis, standing: None) -> None:
    """Asking again neither lengthens nor shortens it, and once it is over the job ends."""
    job = await accept(store, grace=600)
    assert await store.leave(job, "api:a/1") == 600
    client.hincrby(keys.job(job), "unread", -1000)  # a second goes by
    assert await store.leave(job) == 599
    assert await store.leave(job, "api:a/1") == 599
    assert await state(store, job) is JobState.QUEUED
    client.hincrby(keys.job(job), "unread", -599_000)
    assert await store.leave(job) == 0
    assert await state(store, job) is JobState.CANCELLED


async def test_whoever_comes_back_in_time_keeps_the_job(store: JobStore, client: redis.Redis) -> None:
    """What asks for its end later finds it read."""
    job = await accept(store, grace=0.02)
    assert await store.leave(job, "api:a/1") > 0
    over = int(client.hget(keys.job(job), "unread"))  # type: ignore[arg-type]
    await store.attend(job, "api:b/1")
    assert not client.hexists(keys.job(job), "unread")
    eventually(lambda: clock(client) > over, what="the end of its grace")
    assert await store.leave(job) == 0
    assert await state(store, job) is JobState.QUEUED
    assert await store.leave(job, "api:b/1") > 0


async def test_a_job_that_nobody_was_to_read_goes_on(store: JobStore) -> None:
    """Whoever looks at it and leaves takes nothing with them."""
    job = await accept(store, reader=None)
    await store.attend(job, "api:b/1")
    assert await store.leave(job, "api:b/1") == 0
    assert await store.leave(job) == 0
    assert await state(store, job) is JobState.QUEUED


async def test_what_has_ended_is_read_as_it_is(store: JobStore, client: redis.Redis) -> None:
    """Until it expires; nobody is noted as its reader, and leaving it changes nothing."""
    job = await accept(store)
    held = claim(client)
    with EventWriter(client, job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.end(Finished(FinishReason.STOP, Usage(1, 1), Timings()))
    attended = await store.attend(job, "api:b/1")
    assert (attended.ended, attended.last.seq) == (True, 3)
    assert await store.leave(job, "api:b/1") == 0
    assert await state(store, job) is JobState.FINISHED
    assert not client.hexists(keys.job(job), "readers")
    client.delete(keys.job(job), keys.events(job))
    for asked in (store.attend(job, "api:b/1"), store.leave(job, "api:b/1"), store.events(job, 0)):
        with pytest.raises(JobNotFound):
            await asked


async def ended(store: JobStore, client: redis.Redis, text: str) -> str:
    """A job that was answered with this text."""
    job = await accept(store, reader=None)
    held = claim(client)
    with EventWriter(client, held.job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.write((TextDelta(text),))
        writer.end(Finished(FinishReason.STOP, Usage(1, 1), Timings()))
    return job


async def test_what_has_ended_makes_room_for_what_has_not(store: JobStore, client: redis.Redis) -> None:
    """In full memory the records of answers that ended first go before their time, as `up` sets its Valkey; nobody who asks is
    turned away, and nothing that waits is lost."""
    waiting = await accept(store, reader=None)
    client.zrem(keys.waiting("echo"), waiting)  # it keeps out of the way of the others
    before = client.config_get("maxmemory*")
    client.config_set("maxmemory-policy", "volatile-ttl")
    client.config_set("maxmemory-samples", 64)
    try:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 4_000_000)
        jobs = [await ended(store, client, "x" * 200_000) for _ in range(60)]
        kept = [bool(client.exists(keys.job(job)) and client.exists(keys.events(job))) for job in jobs]
        assert (kept[0], kept[-1], client.info("stats")["evicted_keys"] > 0) == (False, True, True)
        assert await state(store, waiting) is JobState.QUEUED
        client.delete(keys.events(jobs[-1]))  # the first half of it has gone
        with pytest.raises(JobNotFound):
            await store.attend(jobs[-1], "api:b/1")
    finally:
        for name in ("maxmemory", "maxmemory-policy", "maxmemory-samples"):
            client.config_set(name, before[name])


async def test_events_come_in_pages(store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event once, in order; the last page says whether others will come."""
    monkeypatch.setattr("tasks.job_records.PAGE", 10)
    monkeypatch.setattr("tasks.stream.COALESCE", 0.0)
    job = await accept(store)
    held = claim(client)
    page = await store.events(job, 0)
    assert [item.event for item in page.events] == [Queued(), Started("w", "b")]
    assert (page.more, page.ended) == (False, False)
    with EventWriter(client, job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        for _ in range(25):
            writer.write((TextDelta("x", 0), TextDelta("y", 1)))
        writer.end(Finished(FinishReason.STOP, Usage(1, 1), Timings()))
    seen = [item.seq for item in page.events]
    while not page.ended:
        page = await store.events(job, seen[-1])
        assert page.more is not page.ended
        seen += [item.seq for item in page.events]
    assert seen == list(range(1, writer.seq + 1))
    assert [item.seq for item in (await store.events(job, 3)).events[:2]] == [4, 5]  # from the middle of an append
    assert (await store.events(job, writer.seq)).ended
