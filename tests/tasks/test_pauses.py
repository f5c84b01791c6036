"""Jobs that make way for a chat, lanes that starve by it, and boards that rest in the heat; on a real Valkey."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, HandedBack, Later, Renewal, claim_next, renew
from tasks.events import FailureCode, TextDelta
from tasks.jobs import JobState, Lane
from tasks.policy import MOST_QUIET
from tasks.stream import EventWriter, RecordedPiece
from tasks.sweep import sweep
from tests.record import read_pieces
from tests.stack import LIMIT
from tests.tasks.line import Queue

pytestmark = pytest.mark.anyio


@pytest.fixture
def queue(client: redis.Redis, aclient: redis.asyncio.Redis) -> Queue:
    return Queue(client, aclient)


@pytest.mark.parametrize(("lane", "wait"), [(Lane.BACKGROUND, 300), (Lane.BATCH, 3600)], ids=["background", "batch"])
async def test_a_starved_lane_is_served_first_once(queue: Queue, lane: Lane, wait: int) -> None:
    """Its oldest job goes before all chats, and is not paused; the next one has to wait as long again."""
    low = [await queue.accept("a", lane) for _ in range(2)]
    chats = [await queue.accept("b") for _ in range(3)]
    for job in low:
        queue.waited(job, wait - 20)
    assert queue.serve() == chats[0]
    for job in low:
        queue.waited(job, 30)
    through = queue.claim()
    assert through.job == low[0]
    assert queue.renew(through) is Renewal.RENEWED
    queue.end(through)
    assert queue.serve() == chats[1]
    queue.quiet_since({Lane.BACKGROUND: 1, Lane.BATCH: 2}[lane], wait + 1)
    assert [queue.serve(), queue.serve()] == [low[1], chats[2]]


async def test_a_lane_that_gets_on_is_not_starved(queue: Queue) -> None:
    """A long queue in the background ages nobody while its jobs end: chats go first, and pause what runs."""
    low = [await queue.accept("a", Lane.BACKGROUND) for _ in range(3)]
    assert queue.serve() == low[0]
    for job in low[1:]:
        queue.waited(job, 10_000)
    held = queue.claim()
    assert held.job == low[1]
    chat = await queue.accept("b")
    assert queue.renew(held) is Renewal.PAUSED
    assert queue.serve() == chat


async def test_waits_add_up(queue: Queue, client: redis.Redis) -> None:
    """A job that is paused again and again ages too, and then runs through."""
    job = await queue.accept("a", Lane.BACKGROUND)
    for _ in range(2):
        queue.waited(job, 140)
        held = queue.claim()
        assert held.job == job
        await queue.accept("b")
        assert queue.renew(held) is Renewal.PAUSED
        queue.pause(held)
        assert queue.serve() != job
    assert held.waited >= 280_000
    queue.waited(job, 21)
    await queue.accept("b")
    held = queue.claim()
    assert held.job == job
    assert queue.renew(held) is Renewal.RENEWED


@pytest.mark.parametrize("lane", [Lane.BACKGROUND, Lane.BATCH])
async def test_a_chat_pauses_a_job_of_a_lower_lane(queue: Queue, client: redis.Redis, lane: Lane) -> None:
    """Its worker is told at once to look, and hears it with each renewal while the chat waits."""
    low = await queue.accept("a", lane)
    held = queue.claim()
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(keys.control("w"))
        heard.get_message(timeout=LIMIT)
        await queue.accept("a", Lane.BACKGROUND)
        assert queue.renew(held) is Renewal.RENEWED
        chat = await queue.accept("a")
        assert heard.get_message(timeout=LIMIT)["data"] == f"chat {low} {held.token}".encode()
    assert [queue.renew(held), queue.renew(held)] == [Renewal.PAUSED] * 2
    taken = queue.claim()
    assert taken.job == chat
    assert queue.renew(held) is Renewal.RENEWED  # another worker had it first
    await queue.accept("b")
    assert queue.renew(taken) is Renewal.RENEWED  # a chat pauses no chat


async def test_one_chat_pauses_one_job(queue: Queue) -> None:
    """However many workers are at jobs it goes before; each further chat pauses one more, whatever was paused earlier."""
    for _ in range(3):
        await queue.accept("a", Lane.BATCH)
    running = [queue.claim() for _ in range(3)]
    await queue.accept("b")
    assert [queue.renew(held) for held in running] == [Renewal.PAUSED, Renewal.RENEWED, Renewal.RENEWED]
    await queue.accept("b")
    assert [queue.renew(held) for held in running] == [Renewal.PAUSED, Renewal.PAUSED, Renewal.RENEWED]
    assert renew(queue.client, running[0], 60, "decode", 0, can_be_paused=False) is Renewal.RENEWED
    assert queue.renew(running[2]) is Renewal.PAUSED  # in its place
    assert queue.renew(running[0]) is Renewal.RENEWED
    for held in (running[0], running[2]):
        queue.pause(held)
    chats = [queue.claim() for _ in range(2)]
    again = [queue.claim() for _ in range(2)]
    assert {held.job for held in again} == {running[0].job, running[2].job}
    await queue.accept("b")
    assert queue.renew(running[1]) is Renewal.PAUSED
    assert [queue.renew(held) for held in chats] == [Renewal.RENEWED] * 2


async def test_a_paused_job_goes_on_when_no_chat_ran_for_as_long_as_its_prefill_took(queue: Queue) -> None:
    """Until then others of its lane are served, and whoever asks is told how long it takes. A minute is the longest."""
    low = await queue.accept("a", Lane.BACKGROUND)
    for prefill, quiet in ((20, 20), (10, 20), (10_000, MOST_QUIET)):
        held = queue.claim()
        assert held.job == low
        chat = await queue.accept("b")
        assert queue.pause(held, prefill) is HandedBack.WAITING
        other = await queue.accept("a", Lane.BACKGROUND)
        assert [queue.serve(), queue.serve()] == [chat, other]
        assert queue.waiting() == [low]
        later = queue.look()
        assert isinstance(later, Later) and quiet - 10 < later.seconds <= quiet
        queue.quiet_since(0, quiet - 5)
        assert isinstance(queue.look(), Later)
        queue.quiet_since(0, 5)
    held = queue.claim()
    assert held.job == low
    view = await queue.store.view(low)
    assert (view.pauses, view.attempts, view.interruptions) == (3, 4, ())
    await queue.accept("b")
    queue.serve()
    queue.give_back(held)  # its worker was stopped: that is no pause
    assert queue.claim().job == low


async def test_the_cheapest_of_paused_jobs_goes_on_first(queue: Queue) -> None:
    """Whoever asks is told when that will be; its age is no matter, for the older one would go on later."""
    jobs = [await queue.accept("a", Lane.BACKGROUND) for _ in range(3)]
    for held, prefill in zip([queue.claim() for _ in jobs], (30, 10, 20), strict=True):
        queue.pause(held, prefill)
    await queue.accept("b")
    queue.serve()
    later = queue.look()
    assert isinstance(later, Later) and 0 < later.seconds <= 10
    queue.quiet_since(0, 10)
    assert queue.serve() == jobs[1]
    queue.quiet_since(0, 20)
    assert [queue.serve(), queue.serve()] == [jobs[0], jobs[2]]


@pytest.mark.parametrize("years", [56, -56])
async def test_clocks_that_jump_keep_no_job_paused(queue: Queue, years: int) -> None:
    """Whichever way: a chat that ended in the year 2081 ended long ago, and so does a wait count that began then."""
    low, other = [await queue.accept("a", Lane.BACKGROUND) for _ in range(2)]
    held = queue.claim()
    await queue.accept("b")
    queue.pause(held, prefill=30)
    queue.serve()
    queue.end(queue.claim())
    assert queue.waiting() == [low] and isinstance(queue.look(), Later)
    queue.quiet_since(0, years * 365 * 86_400)
    held = queue.claim()
    assert held.job == low and queue.renew(held) is Renewal.RENEWED
    queue.pause(held, prefill=30)
    chat = await queue.accept("b")
    queue.waited(low, years * 365 * 86_400)
    queue.quiet_since(1, years * 365 * 86_400)
    assert [queue.serve(), queue.serve()] == [low, chat]
    assert other not in queue.waiting()


async def test_a_paused_job_may_be_gone_on_with_by_another_worker(queue: Queue, client: redis.Redis) -> None:
    """With all it had said on record; the worker that paused it can write nothing more."""
    low = await queue.accept("a", Lane.BACKGROUND)
    held = queue.claim()
    with EventWriter(client, low, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.write((TextDelta("a"),), RecordedPiece(0, 97, b"a"))
    queue.pause(held, read_again=7)
    assert queue.renew(held) is Renewal.LOST
    again = queue.claim()
    assert (again.job, again.sent, again.again, again.seq) == (low, True, 7, held.seq + 2)
    assert read_pieces(client, low) == [RecordedPiece(0, 97, b"a")]
    assert (await queue.store.view(low)).prompt_tokens_again == 7


async def test_how_far_a_prefill_ever_came_is_kept(queue: Queue, client: redis.Redis) -> None:
    """Also over a claim that was paused before it came as far: what is read up to there is read again."""
    await queue.accept("a", Lane.BACKGROUND)
    for done in (64, 128, 0):
        held = queue.claim()
        renew(client, held, 60, "prefill", done)
        queue.pause(held)
    assert queue.claim().read == 128


async def test_a_paused_job_can_be_cancelled_and_may_be_late(queue: Queue, client: redis.Redis) -> None:
    """It ends as any waiting job does; cancelled while it is being paused, it does not wait again."""
    jobs = [await queue.accept("a", Lane.BACKGROUND) for _ in range(3)]
    held = [queue.claim() for _ in jobs]
    await queue.store.cancel(jobs[0], "test")
    assert queue.pause(held[0], 30) is HandedBack.CANCELLED
    for each in held[1:]:
        queue.pause(each, 30)
    await queue.store.cancel(jobs[1], "test")
    queue.ago(keys.job(jobs[2]), "deadline", 601)
    sweep(client, "echo", None)
    views = [await queue.store.view(job) for job in jobs]
    assert [view.state for view in views] == [JobState.CANCELLED, JobState.CANCELLED, JobState.FAILED]
    assert views[2].error is not None and views[2].error.code is FailureCode.DEADLINE
    assert not client.exists(keys.waiting("echo"), keys.running("echo"), keys.lanes("echo"), keys.turns("echo"))


async def test_a_hot_board_rests_between_items_of_batches(queue: Queue) -> None:
    """Chats and background jobs are taken at once, items by boards that are cool, which hear of them once."""
    item = await queue.accept("a", Lane.BATCH)
    low = await queue.accept("a", Lane.BACKGROUND)
    chat = await queue.accept("a")

    def hot() -> Claim | Later | None:
        return claim_next(queue.client, "echo", worker="w", board="hot", child=1, call_id="c", lease=60, rest=30)

    calls = queue.client.llen(keys.calls("echo"))
    for expected in (chat, low):
        found = hot()
        assert isinstance(found, Claim) and found.job == expected
        queue.end(found)
    assert queue.client.llen(keys.calls("echo")) == calls
    for _ in range(2):
        later = hot()
        assert isinstance(later, Later) and later.seconds == 30
        assert queue.client.llen(keys.calls("echo")) == calls + 1
    assert queue.serve() == item


async def test_a_hot_board_serves_a_batch_that_was_starved(queue: Queue) -> None:
    """A batch ends, however hot its only board stays."""
    item = await queue.accept("a", Lane.BATCH)
    queue.waited(item, 3601)
    found = claim_next(queue.client, "echo", worker="w", board="hot", child=1, call_id="c", lease=60, rest=30)
    assert isinstance(found, Claim) and found.job == item
