"""Who is served next: by lanes, by turns of owners, and by what begins alike; on a real Valkey."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import HandedBack, hand_back
from tasks.jobs import Lane
from tasks.policy import ALIKE
from tests.tasks.line import Queue

pytestmark = pytest.mark.anyio


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
