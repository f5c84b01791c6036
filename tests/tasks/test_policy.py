"""Who is served next, on a real Valkey."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, HandedBack, Later, Renewal, claim_next, hand_back, renew
from tasks.events import Failed, FailureCode, Finished, FinishReason, TextDelta, Timings, Usage, encode_events
from tasks.jobs import JobState, Lane, new_job_id
from tasks.policy import ALIKE, MOST_QUIET, Ageing
from tasks.requests import ChatRequest, Message
from tasks.scripts import FAIL_QUEUED
from tasks.store import JobStore
from tasks.stream import EventWriter, RecordedPiece
from tasks.sweep import sweep
from tests.record import read_pieces
from tests.stack import LIMIT

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
DONE = Finished(FinishReason.STOP, Usage(3, 2), Timings())


class Queue:
    """The jobs of one model, and workers that take them."""

    def __init__(self, client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
        self.client = client
        self.store = JobStore(aclient, queue_limit=1000, job_ttl=60, deadline=600)

    async def accept(self, owner: str, lane: Lane = Lane.INTERACTIVE) -> str:
        job = new_job_id()
        await self.store.accept(job, "echo", HELLO, lane=lane, owner=owner)
        return job

    def look(self) -> Claim | Later | None:
        ageing = Ageing(background=300, batch=3600)
        return claim_next(self.client, "echo", worker="w", board="b", child=1, call_id="c", lease=60, ageing=ageing)

    def claim(self) -> Claim:
        claim = self.look()
        assert isinstance(claim, Claim)
        return claim

    def serve(self) -> str:
        """The job that was next; it has ended."""
        claim = self.claim()
        self.end(claim)
        return claim.job

    async def item(self, owner: str, instructions: str, lane: Lane = Lane.BATCH) -> str:
        """A job that begins with these words."""
        job = new_job_id()
        request = ChatRequest(messages=(Message("system", instructions), Message("user", job)))
        await self.store.accept(job, "echo", request, lane=lane, owner=owner)
        return job

    def serve_like(self, prefix: str) -> Claim:
        """The job that was next for a worker whose last one began so; it has ended."""
        claim = claim_next(self.client, "echo", worker="w", board="b", child=1, call_id="c", lease=60, prefix=prefix)
        assert isinstance(claim, Claim)
        self.end(claim)
        return claim

    def end(self, claim: Claim) -> None:
        with EventWriter(self.client, claim.job, "echo", claim.token, claim.seq, lambda: None, patience=5) as writer:
            writer.end(DONE)

    def give_back(self, claim: Claim) -> None:
        became = hand_back(self.client, "echo", claim.job, claim.token, "test", crashed=False)
        assert became is HandedBack.WAITING

    def renew(self, claim: Claim) -> Renewal:
        return renew(self.client, claim, 60, "decode", 0)

    def pause(self, claim: Claim, prefill: float = 0.0, read_again: int = 0) -> HandedBack:
        return hand_back(
            *(self.client, "echo", claim.job, claim.token, "a chat came first"),
            crashed=False,
            paused_after=prefill * 1000,
            read_again=read_again,
        )

    def ago(self, key: str, field: str, seconds: float) -> None:
        """As if what the field tells the time of had been so long ago."""
        self.client.hincrby(key, field, -int(seconds * 1000))

    def waited(self, job: str, seconds: float) -> None:
        self.ago(keys.job(job), "since", seconds)

    def quiet_since(self, lane: int, seconds: float) -> None:
        self.ago(keys.lanes("echo"), f"ended:{lane}", seconds)

    async def end_unserved(self, job: str, how: str) -> None:
        """It ends in its place: somebody cancels it, a board refuses it, or its deadline passes and a claim finds that."""
        match how:
            case "cancelled":
                await self.store.cancel(job, "test")
            case "refused":
                failed = encode_events([Failed(FailureCode.BAD_PROMPT, "test")])
                where = [keys.job(job), keys.events(job), keys.waiting("echo")]
                assert FAIL_QUEUED.run(self.client, where, job, failed, 0) == 1
            case "late":
                self.ago(keys.job(job), "deadline", 601)

    def waiting(self) -> list[str]:
        return [raw.decode() for raw in self.client.zrange(keys.waiting("echo"), 0, -1)]


@pytest.fixture
def queue(client: redis.Redis, aclient: redis.asyncio.Redis) -> Queue:
    return Queue(client, aclient)


async def test_a_job_knows_behind_whom_it_waits(queue: Queue) -> None:
    """Those that run, and the nearest that wait and are served before it; three at most."""
    running = await queue.accept("a", Lane.BACKGROUND)
    assert queue.claim() is not None
    waiting = [await queue.accept("a") for _ in range(3)]
    await queue.accept("a", Lane.BATCH)
    told = (await queue.store.view(await queue.accept("a"))).behind
    assert [(each.id, each.lane, each.running) for each in told] == [
        (running, Lane.BACKGROUND, True),
        (waiting[1], Lane.INTERACTIVE, False),
        (waiting[2], Lane.INTERACTIVE, False),
    ]
    assert (await queue.store.view(running)).behind == ()


async def test_a_flood_keeps_a_newcomer_waiting_for_the_running_job_only(queue: Queue) -> None:
    """However many the others have waiting, and whoever of them came first."""
    flood = [await queue.accept("flood") for _ in range(20)]
    assert [queue.serve() for _ in range(3)] == flood[:3]
    running = queue.claim()
    assert running.job == flood[3]
    newcomer = await queue.accept("newcomer")
    assert (await queue.store.view(newcomer)).position == 1
    queue.end(running)
    assert [queue.serve() for _ in range(3)] == [newcomer, *flood[4:6]]


async def test_owners_take_turns(queue: Queue) -> None:
    """One job of each; those of one owner by age."""
    jobs = {owner: [await queue.accept(owner) for _ in range(count)] for owner, count in (("a", 4), ("b", 2), ("c", 3))}
    expected = [*(jobs[owner][turn] for turn in range(2) for owner in "abc"), jobs["a"][2], jobs["c"][2], jobs["a"][3]]
    assert queue.waiting() == expected
    assert [queue.serve() for _ in expected] == expected


async def test_who_asks_again_at_once_takes_turns_too(queue: Queue) -> None:
    """A client that sends each chat when the one before it ended gets every other turn, not every one."""
    flood = [await queue.accept("flood") for _ in range(6)]
    served = [queue.serve()]
    for _ in range(3):
        chat = await queue.accept("chat")
        served += [queue.serve(), queue.serve()]
        assert chat in served[-2:]
    assert [job for job in served if job in flood] == flood[:4]


@pytest.mark.parametrize("how", ["cancelled", "refused", "late"])
async def test_what_ends_unserved_costs_its_owner_no_turn(queue: Queue, how: str) -> None:
    """Neither for what comes after it, nor for what waits behind it; it is as if it had never come."""
    other = [await queue.accept("b") for _ in range(6)]
    for _ in range(5):
        await queue.end_unserved(await queue.accept("a"), how)
    assert queue.serve() == other[0]
    jobs = [await queue.accept("a") for _ in range(6)]
    for job in jobs[:4]:
        await queue.end_unserved(job, how)
    newest = await queue.accept("a")
    assert [queue.serve() for _ in range(6)] == [jobs[4], other[1], jobs[5], other[2], newest, other[3]]


async def test_what_a_worker_had_costs_a_turn(queue: Queue) -> None:
    """Cancelled after it was handed back it has had its turn, and what is behind it waits for its own."""
    jobs = [await queue.accept(owner) for owner in "aabb"]
    held = queue.claim()
    assert held.job == jobs[0]
    queue.give_back(held)
    await queue.store.cancel(jobs[0], "test")
    assert [queue.serve() for _ in range(3)] == [jobs[2], jobs[1], jobs[3]]


async def test_a_job_that_moved_up_keeps_its_place(queue: Queue) -> None:
    """Handed back it waits there, and not where it was accepted; other lanes have not moved."""
    first, second = [await queue.accept("a") for _ in range(2)]
    other = [await queue.accept("b") for _ in range(2)]
    side = [await queue.accept(owner, Lane.BACKGROUND) for owner in "aab"]
    await queue.end_unserved(first, "cancelled")
    held = queue.claim()
    assert held.job == second
    queue.give_back(held)
    assert [queue.serve() for _ in range(6)] == [second, *other, side[0], side[2], side[1]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("leaving", [0.0, 0.25], ids=["all stay", "some leave"])
async def test_nobody_is_passed_over(queue: Queue, seed: int, leaving: float) -> None:
    """While a job of somebody's waits, no other owner is served more than twice; and nobody's jobs overtake each other."""
    chance = random.Random(seed)
    waiting: dict[str, list[str]] = {owner: [] for owner in "abcde"}
    since: dict[str, Counter[str]] = {owner: Counter() for owner in waiting}
    for _ in range(150):
        owner = chance.choice("aaaabbcde")
        if chance.random() < 0.55:
            waiting[owner].append(await queue.accept(owner))
            if chance.random() < leaving:
                await queue.end_unserved(waiting[owner].pop(chance.randrange(len(waiting[owner]))), "cancelled")
        elif queue.waiting():
            job = queue.serve()
            [owner] = [owner for owner, jobs in waiting.items() if job in jobs]
            assert waiting[owner].pop(0) == job
            since[owner].clear()
            for other, jobs in waiting.items():
                if jobs and other != owner:
                    since[other][owner] += 1
                    assert since[other][owner] <= 2
                elif not jobs:
                    since[other].clear()


async def test_a_job_handed_back_takes_its_old_place(queue: Queue) -> None:
    """Before whatever came after it, though its owner has had many turns since."""
    first = await queue.accept("a")
    held = queue.claim()
    later = [await queue.accept(owner) for owner in ("a", "b", "a")]
    assert queue.serve() == later[1]
    queue.give_back(held)
    assert [queue.serve() for _ in range(3)] == [first, later[0], later[2]]


async def test_turns_are_of_one_lane(queue: Queue) -> None:
    """What somebody has waiting in a lower lane costs no turn in a higher one."""
    batch = [await queue.accept("a", Lane.BATCH) for _ in range(2)]
    side = [await queue.accept("a", Lane.BACKGROUND) for _ in range(2)]
    chats = [await queue.accept("b"), await queue.accept("a")]
    assert [queue.serve() for _ in range(6)] == [*chats, *side, *batch]


@pytest.mark.parametrize("end", ["finished", "cancelled waiting", "cancelled running", "given up"])
async def test_turns_are_forgotten_with_the_last_job(queue: Queue, client: redis.Redis, end: str) -> None:
    """In whatever way it ends; until then the next one knows its turn."""
    for owner in ("a", "b"):
        await queue.accept(owner)
    queue.serve()
    assert client.exists(keys.turns("echo"), keys.lanes("echo")) == 2
    match end:
        case "finished":
            queue.serve()
        case "cancelled waiting":
            await queue.store.cancel(queue.waiting()[0], "test")
        case "cancelled running":
            held = queue.claim()
            await queue.store.cancel(held.job, "test")
            hand_back(client, "echo", held.job, held.token, "test", crashed=False)
        case "given up":
            held = queue.claim()
            client.hset(keys.job(held.job), "failures", 2)
            hand_back(client, "echo", held.job, held.token, "test", crashed=True)
    assert not client.exists(keys.turns("echo"), keys.lanes("echo"))


async def test_an_owner_whose_turns_are_over_is_forgotten(queue: Queue, client: redis.Redis) -> None:
    """However many clients come while the queue is never empty."""
    for number in range(30):
        await queue.accept(f"client {number}")
        await queue.accept("steady")
        queue.serve()
        queue.serve() if number else None
    assert client.zcard(keys.turns("echo")) <= 4


async def test_batch_items_that_begin_alike_go_next_to_each_other(queue: Queue) -> None:
    """Of one owner, who loses no turn by it; not before a chat, and not before another owner whose turn it is."""
    a1, b1, a2 = [await queue.item("ann", words) for words in ("A", "B", "A")]
    first = queue.serve_like("")
    assert first.job == a1
    assert first.prefix
    other = await queue.item("bob", "A")
    chat = await queue.item("ann", "A", Lane.INTERACTIVE)
    assert queue.serve_like(first.prefix).job == chat
    assert queue.serve_like("something else").job == other  # whose turn it is
    assert queue.serve_like(first.prefix).job == a2
    assert queue.serve_like(first.prefix).job == b1
    assert queue.look() is None


async def test_an_item_like_the_last_is_no_other_owners_and_not_paused(queue: Queue) -> None:
    """Nobody's item goes before another's for that, and none goes on before its time."""
    await queue.item("ann", "A")
    await queue.item("bob", "C")
    paused = queue.claim()
    chat = await queue.accept("cid")
    assert queue.pause(paused, prefill=50) is HandedBack.WAITING
    assert [queue.serve(), queue.serve_like("").lane] == [chat, "batch"]
    mine, others = await queue.item("ann", "B"), await queue.item("bob", "A")
    assert queue.serve_like(paused.prefix).job == mine
    assert queue.serve_like("").job == others


async def test_an_item_is_not_passed_over_for_ever(queue: Queue, client: redis.Redis) -> None:
    """Nor by a long batch whose items all begin alike; and one whose record is gone holds nobody up."""
    prefix, served = "", []
    await queue.item("ann", "A")
    other = await queue.item("ann", "B")
    for _ in range(2 * ALIKE):
        await queue.item("ann", "A")
        claim = queue.serve_like(prefix)
        prefix = claim.prefix
        served.append(claim.job)
    assert served.index(other) == ALIKE + 1
    gone = str(client.zrange(keys.waiting("echo"), 0, 0)[0], "ascii")
    client.delete(keys.job(gone))
    assert queue.serve_like(prefix).job != gone


@pytest.mark.parametrize("lane", [Lane.INTERACTIVE, Lane.BACKGROUND])
async def test_an_owner_who_leaves_unserved_is_forgotten(queue: Queue, client: redis.Redis, lane: Lane) -> None:
    """However many come and go while somebody else's job waits, also before the lane had its first turn."""
    await queue.accept("steady", lane)
    for number in range(5):
        await queue.end_unserved(await queue.accept(f"client {number}", lane), "cancelled")
    assert client.zcard(keys.turns("echo")) == 1


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
