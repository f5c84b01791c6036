"""The record of a job: accepted, claimed, appended to, cancelled, handed back, on a real Valkey."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, HandedBack, Renewal, claim_next, hand_back, prompt_fields, renew
from tasks.errors import JobNotFound, QueueFull, QueueUnavailable
from tasks.events import (
    ChoiceEnded,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Queued,
    Started,
    TextDelta,
    Timings,
    Usage,
    encode_events,
    fold,
)
from tasks.feed import LiveFeed, _Wire
from tasks.jobs import JobState, Lane, Phase, Room, new_job_id
from tasks.presence import Presence, breathe
from tasks.reader import Reader
from tasks.requests import ChatRequest, Message
from tasks.scripts import FAIL_QUEUED
from tasks.store import JobStore
from tasks.stream import ClaimLost, EventWriter, RecordedPiece
from tests.record import read_events, read_pieces
from tests.stack import LIMIT, eventually

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
DONE = Finished(FinishReason.STOP, Usage(3, 2), Timings())


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


async def accept(store: JobStore, *, lane: Lane = Lane.INTERACTIVE, deadline: float | None = None) -> str:
    job = new_job_id()
    await store.accept(job, "echo", HELLO, lane=lane, owner="", deadline=deadline)
    return job


def claim(
    client: redis.Redis, *, worker: str = "w", call_id: str = "c", lease: float = 10, attempt: int | None = None
) -> Claim | None:
    return claim_next(client, "echo", worker=worker, board="b", child=1, call_id=call_id, lease=lease, attempt=attempt)


def lapsed(client: redis.Redis, held: Claim) -> bool:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000 > client.zscore(keys.running("echo"), held.job)  # type: ignore[operator]


def taken_for_lost(client: redis.Redis, held: Claim) -> HandedBack:
    """What the sweep does with a lapsed lease."""
    return hand_back(client, "echo", held.job, held.token, "vanished", crashed=True, lapsed_only=True)


def write(client: redis.Redis, claim: Claim, on_cancel: object = None) -> EventWriter:
    return EventWriter(client, claim.job, claim.model, claim.token, claim.seq, on_cancel or (lambda: None), patience=5)


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
    now, _ = client.time()
    client.hset(keys.job(held.job), "started", (now - seconds) * 1000)


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
    assert 35 <= await came_too_late(store) < 39  # a quarter of the way from 40 to 20
    claim(client, worker="another")
    assert 17.5 <= await came_too_late(store) < 21.5


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
    assert 20 <= await came_too_late(store) < 30
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


async def test_accepting_twice_under_one_id_accepts_once(store: JobStore, client: redis.Redis) -> None:
    """A reply lost on the way may be asked for again."""
    job = new_job_id()
    for _ in range(2):
        accepted = await store.accept(job, "echo", HELLO, lane=Lane.INTERACTIVE, owner="")
        assert accepted.place == 0
    assert client.zcard(keys.waiting("echo")) == 1


async def test_an_old_claim_can_write_nothing(store: JobStore, client: redis.Redis) -> None:
    """After a job was handed to another worker, the first one's events are refused, and it learns so."""
    job = await accept(store)
    first = claim(client, worker="one")
    assert first is not None
    writer = write(client, first)
    assert hand_back(client, "echo", job, first.token, "lost", crashed=True) is HandedBack.WAITING
    second = claim(client, worker="two")
    assert second is not None and second.job == job and (await store.view(job)).attempts == 2
    with pytest.raises(ClaimLost):
        writer.write((TextDelta("zombie"),), RecordedPiece(0, 1, b"zombie"))
    with pytest.raises(ClaimLost):
        writer.end(DONE)
    writer.close()
    assert renew(client, first, 10, "decode", 0) is Renewal.LOST
    with write(client, second) as rightful:
        rightful.write((TextDelta("right"),))
        rightful.end(DONE)
    texts = [item.event for item in await read_events(store._client, job) if isinstance(item.event, TextDelta)]
    assert texts == [TextDelta("right")]


async def test_an_append_sent_twice_is_written_once(
    store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks after the command was executed loses nothing and repeats nothing."""
    job = await accept(store)
    held = claim(client)
    assert held is not None
    with write(client, held) as writer:
        writer.write((TextDelta("a"),))
        connection = writer._connection
        read = connection.read_response
        broken = iter([True])

        def breaking(*args: object, **kwargs: object) -> object:
            reply = read(*args, **kwargs)
            if next(broken, False):
                connection.disconnect()
                raise redis.ConnectionError("cut off after the reply was sent")
            return reply

        monkeypatch.setattr(connection, "read_response", breaking)
        writer.write((TextDelta("b"),))
        writer.end(DONE)
    events = [item.event for item in await read_events(aclient, job)]
    assert fold(events).choices[0].text == "ab"
    assert [item.seq for item in await read_events(aclient, job)] == list(range(1, len(events) + 1))


async def test_an_append_in_mid_answer_sent_twice_is_written_once(
    store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself: no later append and no end makes good what the second sending might have broken."""
    await accept(store)
    held = claim(client)
    assert held is not None
    with write(client, held) as writer, client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(keys.live(held.job))
        heard.get_message(timeout=LIMIT)
        sent_twice(monkeypatch, writer._connection)
        writer.write((TextDelta("a"),), RecordedPiece(0, 1, b"a"))
        assert writer.seq == held.seq + 1
        assert read_pieces(client, held.job) == [RecordedPiece(0, 1, b"a")]
        entries = client.xrange(keys.events(held.job))
        attempt = held.token.partition("-")[2].encode()
        assert [entry for entry, _ in entries] == [b"1-0", b"2-" + attempt, b"3-" + attempt]
        client.publish(keys.live(held.job), b"4:after")
        messages = [heard.get_message(timeout=LIMIT)["data"] for _ in range(2)]
        assert [message.partition(b":")[0] for message in messages] == [b"3-" + attempt, b"4"]


def sent_twice(monkeypatch: pytest.MonkeyPatch, connection: Any) -> None:
    """Cut the connection once, when Redis has executed the next command and its reply is on the way."""
    read = connection.read_response
    cut = iter([True])

    def reading(*args: object, **kwargs: object) -> object:
        reply = read(*args, **kwargs)
        if next(cut, False):
            connection.disconnect()
            raise redis.ConnectionError("cut off after the reply was sent")
        return reply

    monkeypatch.setattr(connection, "read_response", reading)


async def test_a_claim_whose_reply_was_lost_is_made_once(
    store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again by itself, and gets the job it already has instead of a second one."""
    first, second = await accept(store), await accept(store)
    assert (
        claim_next(client, "other", worker="w", board="b", child=1, call_id="c", lease=60) is None
    )  # the script is known
    connection = client.connection_pool.get_connection()
    client.connection_pool.release(connection)  # the next command takes it again
    sent_twice(monkeypatch, connection)
    held = claim(client)
    assert held is not None
    assert (held.job, held.seq, (await store.view(first)).attempts) == (first, 2, 1)
    assert client.zrange(keys.running("echo"), 0, -1) == [first.encode()]
    assert (await store.view(second)).state is JobState.QUEUED


async def test_an_attempt_asked_for_again_is_the_same_claim(store: JobStore, client: redis.Redis) -> None:
    """With its lease anew, for as long as it is held; another attempt never gets it."""
    first, second, third = [await accept(store) for _ in range(3)]
    held = claim(client, attempt=1, lease=0)
    assert held is not None and held.job == first
    assert claim(client, attempt=1, lease=60) == held
    assert not lapsed(client, held)
    assert claim(client, attempt=2).job == second  # type: ignore[union-attr]
    assert hand_back(client, "echo", first, held.token, "", crashed=False) is HandedBack.WAITING
    again = claim(client, attempt=3)
    assert again is not None and (again.job, again.token) == (first, "2-3")
    assert claim(client, attempt=1).job == third  # type: ignore[union-attr]
    assert claim(client, attempt=1).job == third  # type: ignore[union-attr]
    assert claim(client) is None


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


@pytest.mark.parametrize("taken", [False, True], ids=["nobody took it", "the sweep took it"])
async def test_a_lapsed_lease_is_renewed_unless_somebody_took_the_job(
    store: JobStore, client: redis.Redis, taken: bool
) -> None:
    """A worker that was frozen for a while goes on where it was, or learns that the job is another's now."""
    job = await accept(store)
    held = claim(client, lease=0)
    assert held is not None
    eventually(lambda: lapsed(client, held), what="the end of the lease")
    if taken:
        assert taken_for_lost(client, held) is HandedBack.WAITING
        assert renew(client, held, 60, "loading", 0) is Renewal.LOST
        assert (await store.view(job)).state is JobState.QUEUED
        return
    assert renew(client, held, 60, "loading", 0) is Renewal.RENEWED
    assert taken_for_lost(client, held) is HandedBack.NOT_OURS
    with write(client, held) as writer:
        writer.end(DONE)
    assert (await store.view(job)).state is JobState.FINISHED


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
    await asyncio.sleep(0.02)  # past the deadline of 1 ms
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


@pytest.mark.parametrize("sent", [False, True], ids=["untouched", "touched"])
async def test_a_crashed_claim_waits_again(store: JobStore, client: redis.Redis, sent: bool) -> None:
    """In its old place before younger ones, with a call of its own; whoever claims it next is told what there is to go on
    from."""
    job = await accept(store)
    await accept(store)
    held = claim(client)
    assert held is not None
    with write(client, held) as writer:
        writer.note(language="bytes", **prompt_fields([(1, 2), (300_000,)]))
        if sent:
            writer.write((TextDelta("half an"),))
    calls = client.llen(keys.calls("echo"))
    assert hand_back(client, "echo", job, held.token, "the process died", crashed=True) is HandedBack.WAITING
    assert (
        client.llen(keys.calls("echo")) == calls + 1
    )  # the one it was claimed on is used up, and the sweep may be far
    view = await store.view(job)
    assert (view.state, view.position, view.interruptions) == (JobState.QUEUED, 1, ("the process died",))
    again = claim(client)
    assert again is not None and (again.job, again.sent) == (job, sent)
    assert (again.prompts, again.language) == ((((1, 2), (300_000,)), "bytes") if sent else ((), ""))


@pytest.mark.parametrize(("final", "once"), [(True, False), (False, True)], ids=["forgotten", "no token ids"])
async def test_what_cannot_be_gone_on_with_fails_once_a_part_was_sent(
    store: JobStore, client: redis.Redis, final: bool, once: bool
) -> None:
    """A client must not read two beginnings; as long as it read nothing, the job may begin anew."""
    job = await accept(store)
    for sent in (False, True):
        held = claim(client)
        assert held is not None
        with write(client, held) as writer:
            if once:
                writer.note(once="1")
            if sent:
                writer.write((TextDelta("half an"),))
        became = hand_back(client, "echo", job, held.token, "the process died", crashed=False, final=final)
        assert became is (HandedBack.FAILED if sent else HandedBack.WAITING)
    error = (await store.view(job)).error
    assert error is not None and error.code is FailureCode.ENGINE_LOST
    assert error.message.startswith("The process died. A part of this answer had been sent")


async def test_the_third_crash_ends_a_job(store: JobStore, client: redis.Redis) -> None:
    """A request that kills every engine does not kill them for ever; hand-overs do not count."""
    job = await accept(store)
    outcomes = []
    for crashed in (False, True, True, False, True):
        held = claim(client)
        assert held is not None
        outcomes.append(hand_back(client, "echo", job, held.token, f"it died {len(outcomes)}", crashed=crashed))
    assert outcomes == [HandedBack.WAITING] * 4 + [HandedBack.FAILED]
    view = await store.view(job)
    assert view.attempts == 5 and view.error is not None
    assert view.interruptions == ("it died 1", "it died 2", "it died 4")
    assert "after 3 tries: (1) it died 1; (2) it died 2; (3) it died 4." in view.error.message


async def test_only_a_lapsed_lease_is_swept(store: JobStore, client: redis.Redis) -> None:
    """A living claim stays; one whose lease has passed is ended."""
    await accept(store)
    held = claim(client, lease=30)
    assert held is not None
    args = (client, "echo", held.job, held.token, "vanished")
    assert hand_back(*args, crashed=True, lapsed_only=True) is HandedBack.NOT_OURS
    assert renew(client, held, 0.0, "prefill", 5) is Renewal.RENEWED
    await asyncio.sleep(0.005)  # the clock must pass the lease, which ends now
    assert hand_back(*args, crashed=True, lapsed_only=True) is HandedBack.WAITING


async def test_a_job_past_its_deadline_is_never_started(store: JobStore, client: redis.Redis) -> None:
    """The claim ends it on the way and takes the next."""
    late = await accept(store, deadline=0.001)
    good = await accept(store)
    await asyncio.sleep(0.02)  # past the deadline of 1 ms
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


async def test_a_reader_sees_every_event_once_though_the_bell_loses_messages(
    store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """Messages dropped, repeated and reordered on the channel change nothing of what is read."""
    async with LiveFeed(aclient) as feed:
        job = new_job_id()
        async with feed.subscribe(keys.live(job)) as subscription:
            await store.accept(job, "echo", HELLO, lane=Lane.INTERACTIVE, owner="")
            put = subscription.put
            kept: list[bytes | None] = []

            def unreliable(message: bytes | None) -> None:
                kept.append(message)
                match len(kept) % 4:
                    case 1:
                        pass  # lost
                    case 2:
                        put(message)
                        put(message)  # repeated
                    case 3:
                        put(kept[-2])  # an old one, late
                        put(message)
                    case _:
                        put(message)

            subscription.put = unreliable  # type: ignore[method-assign]
            held = claim(client)
            assert held is not None

            def work() -> None:
                with write(client, held) as writer:
                    for index in range(200):
                        writer.write((TextDelta(f"{index},"),), RecordedPiece(0, index, b"x"))
                    writer.write((ChoiceEnded(0, FinishReason.STOP),))
                    writer.end(DONE)

            thread = asyncio.get_running_loop().run_in_executor(None, work)
            seen = [item async for item in Reader(aclient, subscription, job).follow(0.2) if item is not None]
            await thread
    assert [item.seq for item in seen] == list(range(1, len(seen) + 1))
    assert fold([item.event for item in seen]).choices[0].text == "".join(f"{index}," for index in range(200))


async def test_a_feed_lives_through_silence(aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says anything for long: the connection is probed, and the next message arrives on it."""
    over, silences = asyncio.Semaphore(0), 0
    probes: list[str] = []
    say = _Wire.say

    async def silence(_: object, timeout: float) -> None:  # noqa: ASYNC109 - asyncio's own has it
        nonlocal silences
        silences += 1
        await over.acquire()

    def note(wire: _Wire, verb: str, name: bytes) -> None:
        probes.extend([verb] if verb == "PING" else [])
        say(wire, verb, name)

    monkeypatch.setattr("tasks.feed.asyncio", SimpleNamespace(**vars(asyncio) | {"wait": silence}))
    monkeypatch.setattr(_Wire, "say", note)
    async with LiveFeed(aclient) as feed, feed.subscribe("quiet") as subscription, asyncio.timeout(LIMIT):
        await subscription.confirmed
        wire = feed._wire
        assert wire is not None
        while len(probes) < 3:
            so_far = silences, len(probes)
            over.release()
            while silences == so_far[0]:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0)
            while len(probes) > so_far[1] and not wire._heard:  # noqa: ASYNC110 - nor has the answer, which comes in time
                await asyncio.sleep(0.01)
        assert any(item["cmd"] == "ping" for item in await aclient.client_list())
        await aclient.publish("quiet", b"hello")
        assert await subscription.wait(LIMIT)
        assert list(subscription.take()) == [b"hello"]
        assert feed._wire is wire


async def test_a_reader_survives_a_cut_subscription(
    store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """The feed reconnects, subscribes anew, and the reader fills the gap from the record."""
    async with LiveFeed(aclient) as feed:
        job = await accept(store)
        async with feed.subscribe(keys.live(job)) as subscription:
            held = claim(client)
            assert held is not None
            seen = []
            with write(client, held) as writer:
                async for item in Reader(aclient, subscription, job).follow(0.2):
                    if item is None:
                        continue
                    seen.append(item.seq)
                    if isinstance(item.event, Started):
                        writer.write((TextDelta("one"),))
                    elif item.event == TextDelta("one"):
                        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                        writer.write((TextDelta("two"),))
                        writer.end(DONE)
    assert seen == list(range(1, len(seen) + 1)) and len(seen) == 5


async def test_a_full_memory_refuses_new_jobs_and_recovers(store: JobStore, client: redis.Redis) -> None:
    """Out of memory, acceptance says that the queue is unavailable, and nothing is left half accepted."""
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueUnavailable):
            await accept(store)
    finally:
        client.config_set("maxmemory", "512mb")
    assert not client.keys("rl:{*")
    await accept(store)


async def test_in_full_memory_whatever_was_accepted_goes_on(store: JobStore, client: redis.Redis) -> None:
    """Claimed, written, renewed, cancelled, handed back, swept: only what ends makes room."""
    answered, cancelled, stopped, lost, left = [await accept(store) for _ in range(5)]
    late = new_job_id()
    await store.accept(late, "other", HELLO, lane=Lane.INTERACTIVE, owner="", deadline=0.001)
    gone = claim(client)  # the scripts must be sent anew, too
    assert gone is not None
    hand_back(client, "echo", answered, gone.token, "", crashed=False)
    client.script_flush()
    client.config_set("maxmemory", 1)
    try:
        held = claim(client)
        assert held is not None and held.job == answered
        with write(client, held) as writer:
            writer.note(**{"prompt:0": b"\1\0\0\0"})
            writer.write((TextDelta("a"),), RecordedPiece(0, 1, b"a"))
            assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED
            writer.end(DONE)
        running = claim(client)
        assert running is not None and running.job == cancelled
        assert await store.cancel(cancelled, "test") is JobState.RUNNING
        with write(client, running) as writer:
            writer.end(Finished(FinishReason.CANCELLED, Usage(0, 0), Timings()))
        running = claim(client)
        assert running is not None and running.job == stopped
        assert hand_back(client, "echo", stopped, running.token, "", crashed=False) is HandedBack.WAITING
        assert await store.cancel(stopped, "test") is JobState.QUEUED
        running = claim(client, lease=0)
        assert running is not None and running.job == lost
        eventually(lambda: lapsed(client, running), what="the end of the lease")
        assert taken_for_lost(client, running) is HandedBack.WAITING
        where = [keys.job(late), keys.events(late), keys.waiting("other")]
        assert FAIL_QUEUED.run(client, where, late, encode_events([Failed(FailureCode.DEADLINE, "")]), 1) == 1
        breathe(client, Presence(name="board:b", board="b"))
        with pytest.raises(QueueUnavailable, match="no memory left"):
            await accept(store)
        states = [(await store.view(job)).state for job in (answered, cancelled, stopped, lost, left, late)]
    finally:
        client.config_set("maxmemory", "512mb")
    assert states == [
        *(JobState.FINISHED, JobState.CANCELLED, JobState.CANCELLED),
        *(JobState.QUEUED, JobState.QUEUED, JobState.FAILED),
    ]
    assert client.hexists(keys.PRESENCE, "board:b")


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
