"""Who is served next, on a real Valkey."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, HandedBack, claim_next, hand_back
from tasks.events import Finished, FinishReason, Timings, Usage
from tasks.jobs import Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter

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

    def claim(self) -> Claim:
        claim = claim_next(self.client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
        assert claim is not None
        return claim

    def serve(self) -> str:
        """The job that was next; it has ended."""
        claim = self.claim()
        self.end(claim)
        return claim.job

    def end(self, claim: Claim) -> None:
        with EventWriter(self.client, claim.job, "echo", claim.token, claim.seq, lambda: None, patience=5) as writer:
            writer.end(DONE)

    def give_back(self, claim: Claim) -> None:
        became = hand_back(self.client, "echo", claim.job, claim.token, "test", crashed=False)
        assert became is HandedBack.WAITING

    def waiting(self) -> list[str]:
        return [raw.decode() for raw in self.client.zrange(keys.waiting("echo"), 0, -1)]


@pytest.fixture
def queue(client: redis.Redis, aclient: redis.asyncio.Redis) -> Queue:
    return Queue(client, aclient)


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


@pytest.mark.parametrize("seed", range(3))
async def test_nobody_is_passed_over(queue: Queue, seed: int) -> None:
    """While a job of somebody's waits, no other owner is served more than twice; and nobody's jobs overtake each other."""
    chance = random.Random(seed)
    waiting: dict[str, list[str]] = {owner: [] for owner in "abcde"}
    since: dict[str, Counter[str]] = {owner: Counter() for owner in waiting}
    for _ in range(150):
        owner = chance.choice("aaaabbcde")
        if chance.random() < 0.55:
            waiting[owner].append(await queue.accept(owner))
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
