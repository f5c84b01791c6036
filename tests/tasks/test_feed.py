"""The live feed of a process: readers that share one connection and never feel each other."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import AsyncIterator

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, claim_next
from tasks.events import (
    ChoiceEnded,
    Event,
    Finished,
    FinishReason,
    Numbered,
    Started,
    TextDelta,
    Timings,
    Usage,
    encode_events,
    fold,
)
from tasks.feed import LiveFeed
from tasks.jobs import Lane, new_job_id
from tasks.reader import Reader
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter, RecordedPiece
from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
DONE = Finished(FinishReason.STOP, Usage(3, 2), Timings())
WORDS = 300
TEXT = "".join(f"{index}," for index in range(WORDS))


@pytest.fixture
async def feed(aclient: redis.asyncio.Redis) -> AsyncIterator[LiveFeed]:
    async with LiveFeed(aclient) as made:
        yield made


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)


async def begin(store: JobStore, client: redis.Redis) -> Claim:
    await store.accept(new_job_id(), "echo", HELLO, lane=Lane.INTERACTIVE, owner="")
    held = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert held is not None
    return held


def answer(client: redis.Redis, held: Claim, pace: float = 0.0, go: threading.Event | None = None) -> None:
    """Write a whole answer, an append a word."""
    with EventWriter(client, held.job, held.model, held.token, held.seq, lambda: None, patience=LIMIT) as writer:
        for index in range(WORDS):
            if go is not None and index == WORDS // 2:
                assert go.wait(LIMIT)
            writer._last_append = float("-inf")
            writer.write((TextDelta(f"{index},"),), RecordedPiece(0, index, b"x"))
            if pace:
                threading.Event().wait(pace)
        writer.write((ChoiceEnded(0, FinishReason.STOP),))
        writer.end(DONE)


async def read(
    feed: LiveFeed, aclient: redis.asyncio.Redis, job: str, *, patience: float = 5.0, until: int | None = None
) -> list[Numbered]:
    """What one reader sees, to the end or up to an event."""
    seen: list[Numbered] = []
    async with feed.subscribe(keys.live(job)) as subscription:
        async for item in Reader(aclient, subscription, job).follow(patience):
            if item is not None:
                seen.append(item)
                if until is not None and item.seq >= until:
                    break
    return seen


def check(seen: list[Numbered]) -> None:
    assert [item.seq for item in seen] == list(range(1, len(seen) + 1))
    assert fold([item.event for item in seen]).choices[0].text == TEXT
    assert seen[-1].event == DONE


async def subscribers(aclient: redis.asyncio.Redis) -> list[str]:
    """The connections that listen, by id."""
    return sorted(item["id"] for item in await aclient.client_list(_type="pubsub"))


async def nobody_listens(client: redis.Redis) -> None:
    """Wait until every channel was left."""
    await asyncio.to_thread(eventually, lambda: not client.pubsub_channels(), what="the end of all subscriptions")


async def test_subscribers_that_are_cancelled_disturb_nobody(
    feed: LiveFeed, store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """Hundreds come and go at random moments, on the same job and on others, while one reads to the end."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    held = await begin(store, client)
    reader = asyncio.create_task(read(feed, aclient, held.job, patience=0.5))
    async with feed.subscribe("steady") as steady:
        await asyncio.wait_for(steady.confirmed, LIMIT)
        [connection] = await subscribers(aclient)
        await besiege(feed, client, aclient, held, chance)
        check(await asyncio.wait_for(reader, LIMIT))
        assert await subscribers(aclient) == [connection]
    await nobody_listens(client)


async def besiege(
    feed: LiveFeed, client: redis.Redis, aclient: redis.asyncio.Redis, held: Claim, chance: random.Random
) -> None:
    """Readers that come and are cancelled while the answer is written."""
    enough = threading.Event()
    writing = asyncio.create_task(asyncio.to_thread(answer, client, held, 0.001, enough))
    others = [held.job, new_job_id(), new_job_id()]
    came = 0
    while not writing.done():
        guests = [
            asyncio.create_task(read(feed, aclient, chance.choice(others), patience=chance.choice((0.001, 5.0))))
            for _ in range(chance.randrange(1, 12))
        ]
        came += len(guests)
        for _ in range(chance.randrange(0, 30)):
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() / 100)
        for guest in guests:
            guest.cancel()
        await asyncio.gather(*guests, return_exceptions=True)
        if came > 50:
            enough.set()
    await writing


async def test_two_readers_of_one_job(
    feed: LiveFeed, store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """Both see all of it, also the one that comes in mid-answer; one that leaves takes nothing from the others."""
    held = await begin(store, client)
    go = threading.Event()
    writing = asyncio.create_task(asyncio.to_thread(answer, client, held, 0.0, go))
    first = asyncio.create_task(read(feed, aclient, held.job))
    leaver = await read(feed, aclient, held.job, until=WORDS // 2)
    second = asyncio.create_task(read(feed, aclient, held.job))
    await asyncio.sleep(0)
    go.set()
    check(await asyncio.wait_for(first, LIMIT))
    check(await asyncio.wait_for(second, LIMIT))
    await writing
    assert [item.seq for item in leaver] == list(range(1, WORDS // 2 + 1))
    check(await asyncio.wait_for(read(feed, aclient, held.job), LIMIT))  # long after its end, from the record


async def test_all_readers_share_one_connection(
    feed: LiveFeed, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """A hundred streams are not a hundred connections."""
    inside = [feed.subscribe(f"channel {index % 50}") for index in range(100)]
    subscriptions = [await context.__aenter__() for context in inside]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(subscription.confirmed for subscription in subscriptions))
    assert len(await subscribers(aclient)) == 1
    for index in range(50):
        assert await aclient.publish(f"channel {index}", b"%d" % index) == 1
    for index, subscription in enumerate(subscriptions):
        assert await subscription.wait(LIMIT)
        assert list(subscription.take()) == [b"%d" % (index % 50)]
    for context in inside:
        await context.__aexit__(None, None, None)
    await nobody_listens(client)


async def test_who_subscribes_again_at_once_misses_nothing(feed: LiveFeed, aclient: redis.asyncio.Redis) -> None:
    """Leaving and coming back overtake each other on the wire; once confirmed, every message arrives or its loss is told."""
    for index in range(50):
        async with feed.subscribe("again"):
            pass
        async with feed.subscribe("again") as subscription:
            async with asyncio.timeout(LIMIT):
                await subscription.confirmed
            await aclient.publish("again", b"%d" % index)
            heard: list[bytes | None] = []
            while b"%d" % index not in heard and None not in heard:
                assert await subscription.wait(LIMIT)
                heard += subscription.take()  # perhaps first a message of the round before, which came late


async def test_readers_go_on_after_the_connection_was_cut_again_and_again(
    feed: LiveFeed, store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """Each reconnection is followed by a look into the record."""
    held = await begin(store, client)
    readers = [asyncio.create_task(read(feed, aclient, held.job, patience=0.2)) for _ in range(3)]
    enough = threading.Event()
    writing = asyncio.create_task(asyncio.to_thread(answer, client, held, 0.003, enough))
    cuts = 0
    while not writing.done():
        await asyncio.sleep(0.02)
        cuts += int(client.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))
        if cuts > 2:
            enough.set()
    await writing
    for reader in readers:
        check(await asyncio.wait_for(reader, LIMIT))


async def test_a_feed_that_begins_while_redis_is_away() -> None:
    """It connects when Redis is there, confirms what was subscribed meanwhile, and knows since when it is connected."""
    stack = Stack({})
    try:
        aclient = redis.asyncio.Redis.from_url(stack.redis_url, protocol=2)
        async with LiveFeed(aclient) as feed, feed.subscribe("early") as subscription:
            await asyncio.sleep(0)
            assert not subscription.confirmed.done() and feed.connected == math.inf
            await asyncio.to_thread(stack.start_valkey)
            async with asyncio.timeout(LIMIT):
                await subscription.confirmed
            assert await aclient.publish("early", b"hello") == 1
            assert await subscription.wait(LIMIT)
            assert list(subscription.take()) == [b"hello"]
            assert feed.connected <= time.monotonic()
            stack.process("valkey").kill()
            async with asyncio.timeout(LIMIT):
                while feed.connected < math.inf:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.01)
        await aclient.aclose()
    finally:
        stack.stop()


def publish(client: redis.Redis, job: str, seq: int) -> None:
    """Ring for an event of the record that was appended without a word."""
    [(entry, fields)] = client.xrange(keys.events(job), f"{seq}-0", f"{seq}-0")
    client.publish(keys.live(job), entry + b":" + fields[b"e"])


def append_unheard(client: redis.Redis, job: str, *events: Event) -> int:
    """Append events as if the message about them was lost; the number of the last."""
    [(last, _)] = client.xrevrange(keys.events(job), count=1)
    seq = int(last.split(b"-")[0])
    for event in events:
        seq += 1
        client.xadd(keys.events(job), {"e": encode_events([event])}, id=f"{seq}-0")
    return seq


async def test_a_gap_is_filled_from_the_record_at_once(
    feed: LiveFeed, store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """A message that jumps over others tells of them; no silence is waited for."""
    held = await begin(store, client)
    seen: list[Numbered] = []
    async with feed.subscribe(keys.live(held.job)) as subscription, asyncio.timeout(LIMIT):
        async for item in Reader(aclient, subscription, held.job).follow(10**6):
            assert item is not None
            seen.append(item)
            if item.seq == held.seq:
                append_unheard(client, held.job, TextDelta("lost"))
                publish(client, held.job, append_unheard(client, held.job, TextDelta("heard")))
            elif item.event == TextDelta("heard"):
                publish(client, held.job, append_unheard(client, held.job, DONE))
    assert [item.event for item in seen[held.seq :]] == [TextDelta("lost"), TextDelta("heard"), DONE]
    assert [item.seq for item in seen] == list(range(1, len(seen) + 1))


async def test_silence_is_reason_to_look_into_the_record(
    feed: LiveFeed, store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """The last message may be the one that was lost, and then no other ever comes."""
    held = await begin(store, client)
    seen: list[Numbered | None] = []
    async with feed.subscribe(keys.live(held.job)) as subscription, asyncio.timeout(LIMIT):
        async for item in Reader(aclient, subscription, held.job).follow(0.05):
            seen.append(item)
            if item is not None and item.seq == held.seq:
                append_unheard(client, held.job, TextDelta("lost"), DONE)
    assert None in seen
    assert [item.event for item in seen if item is not None][held.seq :] == [TextDelta("lost"), DONE]


async def test_a_reader_goes_on_where_it_was(
    feed: LiveFeed, store: JobStore, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """Begun again after it was broken off, it hands on the rest and nothing twice."""
    held = await begin(store, client)
    await asyncio.to_thread(answer, client, held)
    seen: list[Numbered] = []
    async with feed.subscribe(keys.live(held.job)) as subscription:
        reader = Reader(aclient, subscription, held.job)
        async for item in reader.follow():
            assert item is not None
            seen.append(item)
            if item.seq == 100:
                break
        seen += [item async for item in reader.follow() if item is not None]
    assert isinstance(seen[1].event, Started)
    check(seen)
