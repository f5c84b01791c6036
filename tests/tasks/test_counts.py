"""What became of jobs is counted where they end, on a real Valkey."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, claim_next
from tasks.connection import UNREACHABLE, connect
from tasks.events import Failed, FailureCode, Finished, FinishReason, Timings, Usage
from tasks.jobs import Lane, new_job_id
from tasks.model_events import ModelEvents, Unload
from tasks.queue_book import QueueBook
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
KEY = ("echo", Lane.BATCH)


@pytest.fixture
def book(aclient: redis.asyncio.Redis, store: JobStore) -> QueueBook:
    return QueueBook(aclient, store)


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)


async def serve(store: JobStore, client: redis.Redis, end: Finished | Failed) -> None:
    await store.accept(new_job_id(), "echo", HELLO, lane=Lane.BATCH, owner="")
    claim = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert isinstance(claim, Claim)
    with EventWriter(client, claim.job, "echo", claim.token, claim.seq, lambda: None, patience=5) as writer:
        writer.end(end)


async def test_a_job_is_counted_once_when_it_ends(store: JobStore, book: QueueBook, client: redis.Redis) -> None:
    """Its tokens, and its times, each in the bucket that it belongs to."""
    usage, timings = (
        Usage(100, 20, cached_tokens=60, parked_tokens=50),
        Timings(queued_ms=100, load_ms=0, prefill_ms=150, decode_ms=2000),
    )
    await serve(store, client, Finished(FinishReason.STOP, usage, timings))
    await serve(store, client, Finished(FinishReason.LENGTH, usage, timings))
    counts = await book.counts()
    assert counts.ends() == {KEY: {"stop": 1, "length": 1}}
    totals = [counts.total(name) for name in ("prompt", "completion", "cached", "parked")]
    assert totals == [{KEY: 200}, {KEY: 40}, {KEY: 120}, {KEY: 100}]
    wait, first, token = (counts.histogram(name)[KEY] for name in ("wait", "first", "token"))
    assert (wait.within[0], wait.seconds) == (2, 0.2)
    assert (first.within[:2], first.within[-1], first.seconds) == ((0, 2), 2, 0.5)
    assert (token.within[5:8], token.seconds) == ((0, 2, 2), 0.2)
    assert counts.total("crashes") == {}


async def test_jobs_that_failed_or_never_began_have_no_times(
    store: JobStore, book: QueueBook, client: redis.Redis
) -> None:
    """They are counted by what ended them."""
    await serve(store, client, Failed(FailureCode.ENGINE_FAILED, "it broke"))
    job = new_job_id()
    await store.accept(job, "echo", HELLO, lane=Lane.BATCH, owner="")
    await store.cancel(job, "enough")
    counts = await book.counts()
    assert counts.ends() == {KEY: {"engine_failed": 1, "cancelled": 1}}
    assert counts.histogram("wait") == {}


async def test_loads_and_unloads_are_counted(store: JobStore, book: QueueBook, client: redis.Redis) -> None:
    """Beside what is counted of jobs; what could not be told is told the next time."""
    await serve(store, client, Failed(FailureCode.INTERNAL, "it broke"))
    events = ModelEvents()
    events.report(client)
    events.loaded("echo")
    events.loaded("echo")
    events.unloaded("echo", Unload.ROOM)
    with connect("unix:///nowhere") as away, pytest.raises(UNREACHABLE):
        events.report(away)
    events.unloaded("small", Unload.IDLE)
    for _ in range(2):
        events.report(client)
    counts = await book.counts()
    assert counts.of_models("loads") == {("echo",): 2}
    assert counts.of_models("unloads") == {("echo", "room"): 1, ("small", "idle"): 1}
    assert counts.ends() == {KEY: {"internal": 1}}


async def test_counts_are_forgotten_when_nobody_asks_for_long(store: JobStore, client: redis.Redis) -> None:
    """Models come and go; so must what was counted of them."""
    await serve(store, client, Failed(FailureCode.INTERNAL, "it broke"))
    assert 0 < client.pttl(keys.COUNTS) <= 30 * 86_400_000
