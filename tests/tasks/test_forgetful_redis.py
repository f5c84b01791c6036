"""A Redis that died and came back without its last moment: nobody reads two answers as one, nothing is lost that can be told
again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
import redis.asyncio

from tasks import keys, stream
from tasks.claims import Claim, HandedBack, Renewal, claim_next, hand_back, renew
from tasks.connection import connect_async
from tasks.events import ChoiceEnded, Event, Finished, FinishReason, Mark, Numbered, TextDelta, Timings, Usage, fold
from tasks.feed import LiveFeed
from tasks.jobs import JobState, Lane, new_job_id
from tasks.reader import Forgotten, Reader
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import ClaimLost, EventWriter, RecordCut, RecordedPiece
from tests.record import read_events, read_pieces
from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
DONE = Finished(FinishReason.STOP, Usage(3, 2), Timings())


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack({})
    stack.start_valkey()
    yield stack
    stack.stop()


class Place:
    """One accepted job on a Redis that can be made to forget, and who reads it."""

    def __init__(self, stack: Stack, aclient: redis.asyncio.Redis, feed: LiveFeed) -> None:
        self.stack = stack
        self.client = stack.redis
        self.aclient = aclient
        self.feed = feed
        self.store = JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)
        self.job = new_job_id()
        self.seen: list[Numbered] = []

    async def accept(self) -> None:
        await self.store.accept(self.job, "echo", HELLO, lane=Lane.INTERACTIVE, owner="")

    def claim(self, worker: str = "a") -> Claim:
        held = claim_next(self.client, "echo", worker=worker, board="b", child=1, call_id="c", lease=60)
        assert held is not None and held.job == self.job
        return held

    def writer(self, held: Claim) -> EventWriter:
        return EventWriter(self.client, held.job, "echo", held.token, held.seq, lambda: None, patience=LIMIT)

    async def reading(self, patience: float = LIMIT, read: Mark | None = None) -> AsyncIterator[Numbered | None]:
        """What a reader hands on; noted in `seen`. `read` is how far its client had come before."""
        async with self.feed.subscribe(keys.live(self.job)) as subscription, asyncio.timeout(LIMIT):
            async for item in Reader(self.aclient, subscription, self.job, read).follow(patience):
                if item is not None:
                    self.seen.append(item)
                yield item

    async def forget_since(self, moment: int) -> None:
        """Until its reader is there again."""
        await asyncio.to_thread(self.stack.forget_since, moment)
        listening = lambda: self.client.pubsub_numsub(keys.live(self.job))[0][1] == 1  # noqa: E731
        await asyncio.to_thread(eventually, listening, what="a new subscription")

    def text(self) -> str:
        return fold(item.event for item in self.seen).choices[0].text


@pytest.fixture
async def place(stack: Stack) -> AsyncIterator[Place]:
    stack.redis.flushall()
    aclient = connect_async(stack.redis_url)
    async with LiveFeed(aclient) as feed:
        made = Place(stack, aclient, feed)
        await made.accept()
        yield made
    await aclient.aclose()


@pytest.fixture(autouse=True)
def each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece shares an append with another."""
    monkeypatch.setattr(stream, "COALESCE", 0.0)


def say(writer: EventWriter, text: str) -> None:
    for letter in text:
        writer.write((TextDelta(letter),), RecordedPiece(0, ord(letter), letter.encode()))


def end(writer: EventWriter) -> None:
    writer.write((ChoiceEnded(0, FinishReason.STOP),))
    writer.end(DONE)


async def until(reading: AsyncIterator[Numbered | None], event: Event) -> None:
    """Read up to this event."""
    async for item in reading:
        if item is not None and item.event == event:
            return
    raise AssertionError(f"the reading ended without {event}")


async def silence(reading: AsyncIterator[Numbered | None]) -> None:
    """Read until nothing comes, and nothing comes again: the reader has looked into the record in between."""
    for _ in range(2):
        while await anext(reading) is not None:
            pass


async def test_what_redis_forgot_is_written_again(place: Place) -> None:
    """Its reader waits for it, and gets each event once; the record is whole, with what was noted beside the events."""
    held = place.claim()
    moment = place.stack.moment()
    reading = place.reading(patience=0.1)
    with place.writer(held) as writer:
        writer.note(**{"prompt:0": b"\1\0\0\0"})
        say(writer, "abc")
        await until(reading, TextDelta("c"))
        await place.forget_since(moment)
        assert place.client.hmget(keys.job(place.job), "sent", "prompt:0") == [None, None]
        await silence(reading)  # in doubt, for the claim is there still and its events are not
        await asyncio.to_thread(say, writer, "d")
        assert place.client.hmget(keys.job(place.job), "sent", "prompt:0") == [b"1", b"\1\0\0\0"]
        assert [piece.data for piece in read_pieces(place.client, place.job)] == [b"a", b"b", b"c", b"d"]
        end(writer)
        await until(reading, DONE)
    assert place.text() == "abcd"
    assert [item.seq for item in place.seen] == list(range(1, len(place.seen) + 1))
    assert await read_events(place.aclient, place.job) == place.seen


async def test_a_claim_that_redis_forgot_is_no_claim(place: Place) -> None:
    """Though the next one has the same fence and begins at the same number: its worker can write, renew and hand back nothing,
    and its reader, who has seen a part of another answer, is told so instead of reading on."""
    moment = place.stack.moment()
    zombie = place.claim()
    reading = place.reading()
    with place.writer(zombie) as writer:
        say(writer, "abc")
        await until(reading, TextDelta("c"))
        await place.forget_since(moment)
        successor = await asyncio.to_thread(place.claim, "b")
        assert (successor.token.split("-")[0], successor.seq) == (zombie.token.split("-")[0], zombie.seq)
        with pytest.raises(ClaimLost):
            say(writer, "d")
    assert renew(place.client, zombie, 60, "decode", 0) is Renewal.LOST
    assert hand_back(place.client, "echo", place.job, zombie.token, "x", crashed=True) is HandedBack.NOT_OURS
    with place.writer(successor) as writer:
        say(writer, "uvwxyz")
        end(writer)
    with pytest.raises(Forgotten):
        await anext(reading)
    assert place.text() == "abc"
    assert (await place.store.view(place.job)).state is JobState.FINISHED


async def test_who_has_seen_nothing_of_an_answer_reads_another_from_its_start(place: Place) -> None:
    """That the job was begun by somebody else is no answer."""
    moment = place.stack.moment()
    place.claim()
    reading = place.reading(patience=0.1)
    await silence(reading)
    await place.forget_since(moment)
    successor = await asyncio.to_thread(place.claim, "b")
    with place.writer(successor) as writer:
        say(writer, "uvw")
        end(writer)
    await until(reading, DONE)
    assert place.text() == "uvw"
    assert [item.event for item in place.seen if item.seq > 2] == [
        *map(TextDelta, "uvw"),
        *(ChoiceEnded(0, FinishReason.STOP), DONE),
    ]


@pytest.mark.parametrize(("limit", "value"), [("KEPT", -1000.0), ("MOST_KEPT", 0)], ids=["too old", "too much"])
async def test_what_is_not_kept_leaves_no_hole(
    place: Place, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    """The writer ends instead of going on after it, and its reader is told once nobody else can help either."""
    monkeypatch.setattr(stream, limit, value)
    held = place.claim()
    reading = place.reading(patience=0.1)
    with place.writer(held) as writer:
        say(writer, "a")
        moment = place.stack.moment()
        say(writer, "bc")
        await until(reading, TextDelta("c"))
        await place.forget_since(moment)
        with pytest.raises(RecordCut):
            await asyncio.to_thread(say, writer, "d")
        with pytest.raises(RecordCut):
            writer.end(DONE)
    assert [item.event for item in await read_events(place.aclient, place.job)][2:] == [TextDelta("a")]
    await silence(reading)  # the claim is held still
    assert hand_back(place.client, "echo", place.job, held.token, "cut", crashed=False, final=True) is HandedBack.FAILED
    with pytest.raises(Forgotten):
        await until(reading, DONE)
    assert place.text() == "abc"


async def test_whoever_is_in_doubt_reads_nobody_elses_answer(place: Place) -> None:
    """The claim was there still when the reader looked, then it was given up, and another wrote past what had been read."""
    zombie = place.claim()
    moment = place.stack.moment()
    reading = place.reading()
    with place.writer(zombie) as writer:
        say(writer, "abc")
        await until(reading, TextDelta("c"))
    rest = asyncio.create_task(until(reading, DONE))
    await place.forget_since(moment)
    compared = lambda: "cmdstat_exec" in place.client.info("commandstats")  # noqa: E731
    await asyncio.to_thread(eventually, compared, what="a look into the record")
    assert hand_back(place.client, "echo", place.job, zombie.token, "x", crashed=True) is HandedBack.WAITING
    successor = await asyncio.to_thread(place.claim, "b")
    with place.writer(successor) as writer:
        say(writer, "uvwxyz")
    with pytest.raises(Forgotten):
        await rest
    assert place.text() == "abc"


@pytest.mark.parametrize("ended", [False, True], ids=["in the middle", "ended"])
async def test_who_comes_back_reads_nobody_elses_answer(place: Place, ended: bool) -> None:
    """Though the number it comes back with is in the record again: another claim wrote other words under it."""
    moment = place.stack.moment()
    with place.writer(place.claim()) as writer:
        say(writer, "abc")
    *_, last = await read_events(place.aclient, place.job)
    await asyncio.to_thread(place.stack.forget_since, moment)
    with place.writer(await asyncio.to_thread(place.claim, "b")) as writer:
        say(writer, "uvwxyz")
        if ended:
            end(writer)
    with pytest.raises(Forgotten):
        await until(place.reading(read=Mark(last.seq, last.attempt)), DONE)
    assert place.seen == []


async def test_who_comes_back_reads_on_over_a_change_of_claims(place: Place) -> None:
    """What it has read is there, in the middle of an entry and of another claim; and it is told the whole."""
    with place.writer(place.claim()) as writer:
        writer.write((TextDelta("a"), TextDelta("b", 1), TextDelta("c")))
        (last,) = [item for item in await read_events(place.aclient, place.job) if item.event == TextDelta("b", 1)]
    held = place.client.hget(keys.job(place.job), "claim").decode()
    assert hand_back(place.client, "echo", place.job, held, "x", crashed=True) is HandedBack.WAITING
    with place.writer(place.claim("b")) as writer:
        say(writer, "d")
        end(writer)
    await until(place.reading(read=Mark(last.seq, last.attempt)), DONE)
    assert place.text() == "acd"


async def test_who_comes_back_waits_for_what_is_written_again(place: Place) -> None:
    """The claim whose words it has read is held still, and they are not there yet."""
    held = place.claim()
    moment = place.stack.moment()
    with place.writer(held) as writer:
        say(writer, "abc")
        *_, last = await read_events(place.aclient, place.job)
        await asyncio.to_thread(place.stack.forget_since, moment)
        reading = place.reading(patience=0.1, read=Mark(last.seq, last.attempt))
        await silence(reading)
        assert place.seen == []
        await asyncio.to_thread(say, writer, "d")
        end(writer)
        await until(reading, DONE)
    assert place.text() == "abcd"


async def test_a_job_that_redis_forgot_is_not_waited_for(stack: Stack, place: Place) -> None:
    """Even its acceptance is lost: no event will ever come."""
    stack.redis.flushall()
    moment = stack.moment()
    await place.accept()
    reading = place.reading()
    await anext(reading)
    await place.forget_since(moment)
    with pytest.raises(Forgotten):
        await anext(reading)


async def test_what_was_said_of_a_job_that_is_gone_is_read(place: Place) -> None:
    """Its record expired with a jump of the clock before its reader, who was held up, had taken what had come."""
    held = place.claim()
    async with place.feed.subscribe(keys.live(place.job)) as subscription, asyncio.timeout(LIMIT):
        reading = Reader(place.aclient, subscription, place.job).follow(LIMIT)
        seen = [await anext(reading), await anext(reading)]
        subscription.put(None)  # reason to look into the record
        with place.writer(held) as writer:
            say(writer, "ab")
            end(writer)
        arrived = lambda: b"finished" in (subscription._messages[-1] or b"")  # noqa: E731
        await asyncio.to_thread(eventually, arrived, what="the last message")
        place.client.delete(keys.job(place.job), keys.events(place.job))
        seen += [item async for item in reading]
    events = [item.event for item in seen if item is not None]
    assert events[-1] == DONE and fold(events).choices[0].text == "ab"


async def test_what_redis_refuses_is_no_append(place: Place) -> None:
    """An error in the step is the writer's, who would else believe that it was written."""
    held = place.claim()
    seq = held.seq + 1
    place.client.xadd(keys.events(place.job), {"e": b""}, id=f"{seq}-{2**64 - 1}")
    place.client.xdel(keys.events(place.job), f"{seq}-{2**64 - 1}")  # its number is used up
    with place.writer(held) as writer:
        with pytest.raises(redis.ResponseError, match="equal or smaller"):
            say(writer, "a")
        assert writer.seq == held.seq


async def test_what_was_written_again_may_be_forgotten_again(place: Place) -> None:
    """Redis has it since then only, however old it is: it is kept for as long as what is new."""
    held = place.claim()
    with place.writer(held) as writer:
        say(writer, "a")
        first = place.stack.moment()
        say(writer, "bc")
        await asyncio.to_thread(place.stack.forget_since, first)
        writer._kept = deque(append._replace(at=append.at - 2 * stream.KEPT) for append in writer._kept)  # long ago
        second = place.stack.moment()
        await asyncio.to_thread(say, writer, "de")
        await asyncio.to_thread(place.stack.forget_since, second)
        await asyncio.to_thread(say, writer, "f")
    assert [piece.data for piece in read_pieces(place.client, place.job)] == [b"a", b"b", b"c", b"d", b"e", b"f"]
