"""The record of a job from acceptance to its end: what is in it, and who may still write, on a real Valkey."""

from __future__ import annotations

import threading

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import HandedBack, Renewal, claim_next, hand_back, renew
from tasks.errors import JobNotFound
from tasks.events import (
    ChoiceEnded,
    FailureCode,
    Finished,
    FinishReason,
    Queued,
    Started,
    TextDelta,
    Timings,
    Usage,
    fold,
)
from tasks.jobs import JobState, Lane, Phase, new_job_id
from tasks.store import JobStore
from tasks.stream import RecordedPiece
from tests.record import read_events, read_pieces
from tests.stack import LIMIT, eventually
from tests.tasks.jobs import DONE, HELLO, accept, claim, past_deadline, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


async def test_a_job_lives_from_acceptance_to_its_last_event(
    store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """State, events, pieces and usage all come out of the record as they went in; afterwards it expires."""
    job = await accept(store)
    assert (await store.view(job)).position == 1
    held = claim(client)
    assert held is not None and held.job == job
    assert (await store.view(job)).phase is Phase.LOADING
    with write(client, held) as writer:
        writer.note(**{"phase": "prefill", "prompt:0": b"\1\0\0\0"})
        writer.write((TextDelta("he"),), RecordedPiece(0, 7, b"he"))
        writer.write((TextDelta("llo"),), RecordedPiece(0, 8, b"llo"))
        writer.write((ChoiceEnded(0, FinishReason.STOP),))
        writer.end(DONE)
    numbered = await read_events(aclient, job)
    assert [item.seq for item in numbered] == list(range(1, len(numbered) + 1))
    events = [item.event for item in numbered]
    assert events[:2] == [Queued(), Started("w", "b")]
    assert events[-1] == DONE
    assert fold(events).choices[0].text == "hello"
    assert read_pieces(client, job) == [RecordedPiece(0, 7, b"he"), RecordedPiece(0, 8, b"llo")]
    view = await store.view(job)
    assert (view.state, view.usage, view.attempts) == (JobState.FINISHED, Usage(3, 2), 1)
    assert client.pttl(keys.job(job)) > 0 and client.pttl(keys.events(job)) > 0
    assert not client.exists(keys.waiting("echo"), keys.running("echo"))


async def test_a_claim_that_ended_early_is_told(store: JobStore, client: redis.Redis) -> None:
    """With its board, whose name may be of several words, and why."""
    job = await accept(store)
    held = claim_next(client, "echo", worker="w", board="Living room", child=1, call_id="c", lease=10)
    assert held is not None
    hand_back(client, "echo", job, held.token, "a chat came first", crashed=False)
    view = await store.view(job)
    [ended] = view.claims
    assert (ended.board, ended.why) == ("Living room", "a chat came first")
    assert view.created_at <= ended.started_at <= ended.ended_at == view.waiting_since


async def test_lanes_go_first_then_age(store: JobStore, client: redis.Redis) -> None:
    """An interactive job is claimed before older batch jobs; within a lane the oldest is."""
    batch = [await accept(store, lane=Lane.BATCH) for _ in range(2)]
    chats = [await accept(store) for _ in range(2)]
    assert [(await store.view(job)).position for job in (*chats, *batch)] == [1, 2, 3, 4]
    order = [claim(client).job for _ in range(4)]  # type: ignore[union-attr]
    assert order == [*chats, *batch]
    assert claim(client) is None


async def test_accepting_twice_under_one_id_accepts_once(store: JobStore, client: redis.Redis) -> None:
    """A reply lost on the way may be asked for again."""
    job = new_job_id()
    for _ in range(2):
        accepted = await store.accept(job, "echo", HELLO, lane=Lane.INTERACTIVE, owner="")
        assert accepted.place == 0
    assert client.zcard(keys.waiting("echo")) == 1


async def test_an_empty_choice_that_ended_was_sent_too(store: JobStore, client: redis.Redis) -> None:
    """After a crash it must not end a second time, so the next claim has to look at what was done."""
    await accept(store)
    held = claim(client)
    assert held is not None
    with write(client, held) as writer:
        writer.write((ChoiceEnded(0, FinishReason.STOP),))
        assert client.hget(keys.job(held.job), "sent") == b"1"
    assert hand_back(client, "echo", held.job, held.token, "died", crashed=True) is HandedBack.WAITING
    again = claim(client)
    assert again is not None and again.sent


async def test_what_nobody_reads_after_the_end_is_dropped(store: JobStore, client: redis.Redis) -> None:
    """The request and its prompts are most of a record; a job that may still run keeps them."""

    def big(job: str) -> list[bytes]:
        return sorted(name for name in client.hkeys(keys.job(job)) if name == b"request" or name.startswith(b"prompt:"))

    answered, cancelled, failed, late = [await accept(store) for _ in range(3)] + [await accept(store, deadline=0.001)]
    held = claim(client)
    assert held is not None and held.job == answered
    with write(client, held) as writer:
        writer.note(**{"prompt:0": b"\1\0\0\0", "prompt:1": b"\2\0\0\0"})
        writer.write((TextDelta("x"),))
        assert big(answered) == [b"prompt:0", b"prompt:1", b"request"]
        writer.end(DONE)
    await store.cancel(cancelled, "test")
    crashed = claim(client)
    assert crashed is not None and crashed.job == failed
    hand_back(client, "echo", failed, crashed.token, "", crashed=False)
    assert big(failed) == [b"request"]
    for _ in range(3):
        crashed = claim(client)
        assert crashed is not None
        hand_back(client, "echo", failed, crashed.token, "died", crashed=True)
    eventually(lambda: past_deadline(client, late), what="the deadline")
    assert claim(client) is None
    for job, state in ((answered, "finished"), (cancelled, "cancelled"), (failed, "failed"), (late, "failed")):
        assert (await store.view(job)).state == state
        assert big(job) == []


async def test_a_cancelled_waiting_job_ends_at_once(store: JobStore, client: redis.Redis) -> None:
    """It leaves the queue, nobody can claim it, and its last event says what happened."""
    job = await accept(store)
    assert await store.cancel(job, "client left") is JobState.QUEUED
    assert client.zscore(keys.waiting("echo"), job) is None  # whoever waits behind it moves up at once
    assert claim(client) is None
    view = await store.view(job)
    assert view.state is JobState.CANCELLED and view.ended_at is not None and view.timings is not None
    assert view.timings.queued_ms == pytest.approx((view.ended_at - view.created_at) * 1000, abs=0.01)
    assert await store.cancel(job, "again") is JobState.CANCELLED
    assert client.pttl(keys.job(job)) > 0


async def test_a_running_job_learns_of_its_cancellation_with_its_next_append(
    store: JobStore, client: redis.Redis
) -> None:
    """Even when the message on the control channel is lost."""
    await accept(store)
    held = claim(client)
    assert held is not None
    told = threading.Event()
    with write(client, held, told.set) as writer:
        writer.write((TextDelta("a"),))
        assert not told.is_set()
        assert await store.cancel(held.job, "client left") is JobState.RUNNING
        writer.write((TextDelta("b"),))
        assert told.wait(LIMIT)
        assert renew(client, held, 10, "decode", 0) is Renewal.CANCELLED
        writer.end(Finished(FinishReason.CANCELLED, Usage(1, 1), Timings()))
    assert (await store.view(held.job)).state is JobState.CANCELLED


async def test_a_job_past_its_deadline_is_never_started(store: JobStore, client: redis.Redis) -> None:
    """The claim ends it on the way and takes the next."""
    late = await accept(store, deadline=0.001)
    good = await accept(store)
    eventually(lambda: past_deadline(client, late), what="the deadline")
    held = claim(client)
    assert held is not None and held.job == good
    view = await store.view(late)
    assert view.state is JobState.FAILED and view.error is not None
    assert view.error.code is FailureCode.DEADLINE


async def test_an_unknown_job_is_not_found(store: JobStore) -> None:
    """Whatever is asked for, and no text that is no id reaches a key."""
    for job in (new_job_id(), "", "../x", "a}b", "A" * 22, "x" * 10_000):
        with pytest.raises(JobNotFound):
            await store.view(job)
        with pytest.raises(JobNotFound):
            await store.cancel(job, "")


async def test_calls_do_not_pile_up_while_a_worker_is_busy(store: JobStore, client: redis.Redis) -> None:
    """One call serves several jobs; there are never more than jobs that wait, and never fewer."""
    for _ in range(3):
        await accept(store)
    assert client.llen(keys.calls("echo")) == 3
    while claim(client) is not None:  # all of them on one call that was taken before
        pass
    for waiting in (1, 2, 3, 4):
        await accept(store)
        assert client.llen(keys.calls("echo")) == max(3, waiting)
