"""A job is read while it is written, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.events import ChoiceEnded, FinishReason, Started, TextDelta, fold
from tasks.feed import LiveFeed, _Wire
from tasks.jobs import Lane, new_job_id
from tasks.reader import Reader
from tasks.store import ACCEPTED, JobStore
from tasks.stream import RecordedPiece
from tests.stack import LIMIT
from tests.tasks.jobs import DONE, HELLO, accept, claim, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


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


async def test_what_was_heard_from_the_start_is_not_looked_up(
    store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had subscribed when the job was accepted knows all that is on record. Nobody else may think so, nor who asks for
    the same job a second time."""
    job = new_job_id()
    asked = {"lane": Lane.INTERACTIVE, "owner": ""}
    async with LiveFeed(aclient) as feed, feed.subscribe(keys.live(job)) as subscription, asyncio.timeout(LIMIT):
        await subscription.confirmed
        assert (await store.accept(job, "echo", HELLO, **asked)).heard  # type: ignore[arg-type]
        assert not (await store.accept(job, "echo", HELLO, **asked)).heard  # type: ignore[arg-type]
        assert not (await store.accept(new_job_id(), "other", HELLO, **asked)).heard  # type: ignore[arg-type]
        reader = Reader(aclient, subscription, job)
        reader.knows(ACCEPTED)
        look = reader._read
        monkeypatch.setattr(reader, "_read", None)
        held = claim(client)
        assert held is not None
        with write(client, held) as writer:
            writer.write((TextDelta("one"),))
            writer.end(DONE)
        seen = [item async for item in reader.follow(LIMIT) if item is not None]
        assert [item.seq for item in seen] == [2, 3, 4]
        monkeypatch.setattr(reader, "_read", look)
        again = Reader(aclient, subscription, job)
        again.knows(ACCEPTED)
        subscription.put(None)  # some may be missing by now
        assert [item async for item in again.follow(LIMIT) if item is not None] == seen


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
