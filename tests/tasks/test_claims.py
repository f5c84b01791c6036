"""Claims: made once, lost with their lease, handed back after a crash, and outdone by newer ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import HandedBack, Renewal, claim_next, hand_back, prompt_fields, renew
from tasks.connection import connect
from tasks.events import FailureCode, TextDelta, fold
from tasks.jobs import JobState
from tasks.queue import send
from tasks.store import JobStore
from tasks.stream import ClaimLost, RecordedPiece
from tests.record import read_events, read_pieces
from tests.stack import LIMIT, eventually
from tests.tasks.jobs import DONE, accept, claim, lapsed, taken_for_lost, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


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


async def test_a_call_is_waited_for_and_answered_in_one_go(
    store: JobStore, client: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Redis has forgotten the script, and where the reply is lost: then it is the same claim."""
    worker = connect(valkey_url)  # of its own, or whoever looks at it might lose the reply in its place
    assert claim(worker, call_within=0.01) is None
    client.script_flush()
    for lost in (False, True):
        if lost:
            connection = worker.connection_pool.get_connection()
            worker.connection_pool.release(connection)
            sent_twice(monkeypatch, connection)
        call = asyncio.get_running_loop().run_in_executor(None, lambda: claim(worker, call_within=4.0))
        await asyncio.to_thread(
            eventually, lambda: client.info("clients")["blocked_clients"] == 1, what="one who waits for a call"
        )
        job = await accept(store)
        if lost:
            await asyncio.to_thread(send, client, "echo")  # it asks for both again
        held = await call
        assert held is not None
        assert (held.job, (await store.view(job)).attempts, client.llen(keys.calls("echo"))) == (job, 1, 0)
    worker.close()


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
    eventually(lambda: lapsed(client, held), what="the end of the lease")
    assert hand_back(*args, crashed=True, lapsed_only=True) is HandedBack.WAITING
