"""Queues held by administrators: paused, drained, emptied, on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Set

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, Later, Renewal, claim_next, renew
from tasks.errors import QueueDraining
from tasks.events import Failed, FailureCode, encode_events
from tasks.jobs import JobState, Lane, new_job_id
from tasks.queue_book import QueueBook
from tasks.requests import ChatRequest, Message
from tasks.scripts import FAIL_QUEUED
from tasks.standing import UNTRIED, Gate
from tasks.store import JobStore
from tasks.sweep import sweep

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)


@pytest.fixture
def book(aclient: redis.asyncio.Redis, store: JobStore) -> QueueBook:
    return QueueBook(aclient, store)


async def accept(store: JobStore, owner: str = "", lane: Lane = Lane.INTERACTIVE, model: str = "echo") -> str:
    job = new_job_id()
    await store.accept(job, model, HELLO, lane=lane, owner=owner)
    return job


def claim(client: redis.Redis, model: str = "echo") -> Claim | Later | None:
    return claim_next(client, model, worker="w", board="b", child=1, call_id="c", lease=60)


async def test_a_paused_queue_begins_nothing(store: JobStore, book: QueueBook, client: redis.Redis) -> None:
    """What runs goes on, what comes is accepted, other models are served, and nothing is called for in vain."""
    running = await accept(store)
    held = claim(client)
    assert isinstance(held, Claim)
    await book.set_gate("echo", Gate.PAUSED)
    waiting = await accept(store)
    await accept(store, model="other")
    assert claim(client) is None
    assert isinstance(claim(client, "other"), Claim)
    assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED
    client.delete(keys.calls("echo"))
    sweep(client, "echo", None)
    assert client.llen(keys.calls("echo")) == 0
    found = await store.view(waiting)
    assert (found.state, found.position, found.estimated_wait) == (JobState.QUEUED, 1, None)
    assert (await store.view(running)).state is JobState.RUNNING
    assert (found.held, (await store.view(running)).held) == ("queue", None)
    await book.set_gate("echo", Gate.OPEN)
    assert client.llen(keys.calls("echo")) == 1  # a worker is called at once
    taken = claim(client)
    assert isinstance(taken, Claim) and taken.job == waiting


async def test_a_pause_puts_nothing_aside_for_what_it_holds_back(
    store: JobStore, book: QueueBook, client: redis.Redis
) -> None:
    """A chat that cannot begin is no reason to pause what runs in the background."""
    await accept(store, lane=Lane.BACKGROUND)
    held = claim(client)
    assert isinstance(held, Claim)
    await book.set_gate("echo", Gate.PAUSED)
    await accept(store)
    assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED
    await book.set_gate("echo", Gate.OPEN)
    assert renew(client, held, 60, "decode", 0) is Renewal.PAUSED


async def test_a_draining_queue_runs_empty(store: JobStore, book: QueueBook, client: redis.Redis) -> None:
    """What waits is served, what comes is refused in the step that would accept it, and what was accepted stays so."""
    waiting = await accept(store)
    await book.set_gate("echo", Gate.DRAINING)
    with pytest.raises(QueueDraining):
        await accept(store)
    assert client.zcard(keys.waiting("echo")) == 1
    await store.accept(waiting, "echo", HELLO, lane=Lane.INTERACTIVE, owner="")  # sent again after a lost reply
    await accept(store, model="other")
    taken = claim(client)
    assert isinstance(taken, Claim) and taken.job == waiting
    await book.set_gate("echo", Gate.OPEN)
    await accept(store)


async def test_a_queue_is_seen_as_it_stands(store: JobStore, book: QueueBook, client: redis.Redis) -> None:
    """By lane, with what its jobs take; one that was never used is empty."""
    for lane in (Lane.INTERACTIVE, Lane.BATCH, Lane.BATCH, Lane.BACKGROUND, Lane.INTERACTIVE):
        last = await accept(store, lane=lane)
    assert isinstance(claim(client), Claim)
    client.hset(keys.PACE, "echo", 3000)
    found, empty = await book.view(["echo", "other"])
    assert list(found.waiting.items()) == [(Lane.INTERACTIVE, 1), (Lane.BACKGROUND, 1), (Lane.BATCH, 2)]
    assert (found.standing.gate, found.standing.running, found.standing.pace) == (Gate.OPEN, 1, 3.0)
    assert (found.job_seconds, found.standing.wait(4)) == (3.0, 15.0)
    assert (await store.view(last)).estimated_wait == 3.0
    placed = await store.place(last, "echo")
    assert placed is not None and (placed[0], placed[1].wait(placed[0])) == (0, 3.0)
    assert (sum(empty.waiting.values()), empty.job_seconds, empty.standing.pace) == (0, None, UNTRIED)


async def test_jobs_are_cancelled_in_bulk(store: JobStore, book: QueueBook, client: redis.Redis) -> None:
    """Those that are meant and no others; what runs is told to stop only where that is asked for."""
    running = await accept(store, "ann")
    held = claim(client)
    assert isinstance(held, Claim)
    anns = [await accept(store, "ann", lane) for lane in (Lane.INTERACTIVE, Lane.BATCH)]
    bobs = [await accept(store, "bob", lane) for lane in (Lane.INTERACTIVE, Lane.BATCH)]
    assert {(job.id, job.owner) for job in await book.held("echo")} == {
        *((job, "ann") for job in (running, *anns)),
        *((job, "bob") for job in bobs),
    }

    async def left() -> set[str]:
        views = await asyncio.gather(*(store.view(job) for job in (*anns, *bobs)))
        return {view.id for view in views if view.state is JobState.QUEUED}

    assert await book.cancel("other", running=True) == 0
    assert await book.cancel("echo", running=False, owner="ann", lane=Lane.BATCH) == 1
    assert await left() == {anns[0], *bobs}
    assert await book.cancel("echo", running=False, owner="ann") == 1
    assert await left() == set(bobs)
    assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED
    assert await book.cancel("echo", running=True, owner="ann") == 1
    assert renew(client, held, 60, "decode", 0) is Renewal.CANCELLED
    assert await book.cancel("echo", running=False) == 2
    assert await left() == set()
    assert await book.cancel("echo", running=False) == 0


async def test_jobs_are_listed_by_what_they_are_at(store: JobStore, book: QueueBook, client: redis.Redis) -> None:
    """Running ones, waiting ones in their order, and those that ended, the newest first; of batches only what failed."""
    ended = [await accept(store) for _ in range(2)]
    items = [await accept(store, lane=Lane.BATCH) for _ in range(2)]
    for job in (*ended, items[0]):
        await store.cancel(job, "test")
    failed = encode_events([Failed(FailureCode.BAD_PROMPT, "no")])
    FAIL_QUEUED.run(client, [keys.job(items[1]), keys.events(items[1]), keys.waiting("echo")], items[1], failed, 0)
    running = await accept(store)
    assert isinstance(claim(client), Claim)
    waiting = [await accept(store, model=model) for model in ("echo", "other", "echo")]

    async def listed(states: Set[JobState], limit: int = 50) -> list[str]:
        return [view.id for view in await book.list_jobs(["echo", "other"], states, limit)]

    every = frozenset(JobState)
    assert await listed(every) == [running, waiting[0], waiting[2], waiting[1], *reversed(ended)]
    assert await listed({JobState.FAILED}) == [items[1]]
    assert await listed({JobState.CANCELLED}) == list(reversed(ended))
    assert await listed(every, 2) == [running, waiting[0]]
    client.delete(keys.job(ended[1]))
    assert await listed(every - {JobState.QUEUED, JobState.RUNNING}) == [ended[0]]
    assert client.pttl(keys.ENDED) > 0 and client.pttl(keys.FAILED) > 0


async def test_a_list_of_ended_jobs_does_not_grow(store: JobStore, client: redis.Redis) -> None:
    """However many there are."""
    for _ in range(105):
        await store.cancel(await accept(store), "test")
    assert client.llen(keys.ENDED) == 100
