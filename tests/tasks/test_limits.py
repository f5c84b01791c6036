"""What the owner of a key may ask for, on a real Valkey."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import claim_next
from tasks.errors import LimitReached, QueueFull
from tasks.events import Failed, FailureCode, Finished, FinishReason, Timings, Usage
from tasks.jobs import Lane, new_job_id
from tasks.limits import Limits
from tasks.requests import ChatRequest, Message
from tasks.store import Accepted, JobStore
from tasks.stream import EventWriter

pytestmark = pytest.mark.anyio

HELLO = ChatRequest((Message("user", "hello"),))
OWNER = "key:0123456789abcdef"
LIMITS = f"rl:limits:{OWNER}"


class Asking:
    """One owner with limits, whose jobs are served when the test says so."""

    def __init__(self, aclient: redis.asyncio.Redis, client: redis.Redis) -> None:
        self.client = client
        client.set(
            keys.CLOCK, "0:1000000"
        )  # far from Redis' own, so it stands: no time passes that a test does not let pass
        self.store = JobStore(aclient, queue_limit=50, job_ttl=60, deadline=600)

    async def ask(self, limits: Limits | None, owner: str = OWNER) -> Accepted:
        return await self.store.accept(new_job_id(), "echo", HELLO, lane=Lane.INTERACTIVE, owner=owner, limits=limits)

    async def refused(self, limits: Limits) -> LimitReached:
        with pytest.raises(LimitReached) as caught:
            await self.ask(limits)
        return caught.value

    def serve(self, end: Finished | Failed) -> None:
        held = claim_next(self.client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
        assert held is not None
        with EventWriter(self.client, held.job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
            writer.end(end)

    def later(self, name: str, seconds: float) -> None:
        """As if so much time had gone by."""
        full = float(self.client.hget(LIMITS, name) or 0)
        self.client.hset(LIMITS, name, full - seconds * 1000)


def finished(prompt: int, answer: int) -> Finished:
    return Finished(FinishReason.STOP, Usage(prompt, answer), Timings())


@pytest.fixture
def asking(aclient: redis.asyncio.Redis, client: redis.Redis) -> Asking:
    return Asking(aclient, client)


async def test_requests_of_a_minute(asking: Asking) -> None:
    """As many as are allowed at once, then one whenever its share of the minute is over. Others are not concerned."""
    limits = Limits(requests=3)
    left = []
    for _ in range(3):
        allowance = (await asking.ask(limits)).allowance
        assert allowance is not None and allowance.requests is not None and allowance.tokens is None
        left.append(allowance.requests.left)
        assert 0 < allowance.requests.full_in <= 60
    assert left == [2, 1, 0]
    reached = await asking.refused(limits)
    assert (reached.which, reached.limit) == ("requests", 3) and 15 < reached.retry_after <= 20
    assert reached.allowance.requests is not None and reached.allowance.requests.left == 0
    assert (await asking.ask(None)).allowance is None
    await asking.ask(limits, owner="key:another")
    asking.later("requests", 21)
    await asking.ask(limits)
    await asking.refused(limits)


async def test_what_is_refused_costs_nothing(asking: Asking, client: redis.Redis) -> None:
    """Neither by its limit nor because the queue is full; and one that is sent twice costs one."""
    limits = Limits(requests=1000)
    full = JobStore(asking.store._client, queue_limit=1, job_ttl=60, deadline=600)
    await asking.ask(limits)
    before = client.hget(LIMITS, "requests")
    with pytest.raises(QueueFull):
        await full.accept(new_job_id(), "echo", HELLO, lane=Lane.INTERACTIVE, owner=OWNER, limits=limits)
    assert client.hget(LIMITS, "requests") == before
    job = new_job_id()
    lefts = set()
    for _ in range(2):
        accepted = await asking.store.accept(job, "echo", HELLO, lane=Lane.INTERACTIVE, owner=OWNER, limits=limits)
        assert accepted.allowance is not None and accepted.allowance.requests is not None
        lefts.add(accepted.allowance.requests.left)
    assert lefts == {998}


async def test_tokens_of_a_minute(asking: Asking) -> None:
    """They are taken when a job has ended, more perhaps than there are; then the owner waits until one is there again."""
    limits = Limits(tokens=600)
    for _ in range(2):
        await asking.ask(limits)
    asking.serve(finished(100, 200))
    allowance = (await asking.ask(limits)).allowance
    assert allowance is not None and allowance.tokens is not None and allowance.requests is None
    assert 300 <= allowance.tokens.left <= 310 and 29 <= allowance.tokens.full_in <= 30
    asking.serve(finished(400, 500))
    reached = await asking.refused(limits)
    assert reached.which == "tokens" and 55 < reached.retry_after <= 60.2
    assert reached.allowance.tokens is not None and reached.allowance.tokens.left == 0
    asking.serve(Failed(FailureCode.BAD_PROMPT, "no"))
    asking.later("tokens", 61)
    await asking.ask(limits)


async def test_jobs_at_once(asking: Asking, client: redis.Redis) -> None:
    """Waiting and running ones count, those that ended or that Redis has forgotten do not."""
    limits = Limits(jobs=2)
    for _ in range(2):
        await asking.ask(limits)
    assert (await asking.refused(limits)).which == "jobs"
    asking.serve(finished(1, 1))
    await asking.ask(limits)
    await asking.refused(limits)
    client.delete(*client.keys(keys.JOBS))
    await asking.ask(limits)


async def test_nothing_is_left_behind(asking: Asking, client: redis.Redis) -> None:
    """What is kept of an owner goes by itself, once it is worth nothing."""
    await asking.ask(Limits(requests=2, tokens=100, jobs=3))
    asking.serve(finished(500, 500))
    assert 60_000 * 10 - 5000 < client.pttl(LIMITS) <= 60_000 * 10 + 1000
    assert 0 < client.pttl(f"{LIMITS}:jobs") <= 600_000


async def test_a_key_without_limits_costs_nothing(asking: Asking, client: redis.Redis) -> None:
    """Nor is anything kept of it."""
    await asking.ask(None)
    asking.serve(finished(5, 5))
    assert client.keys("rl:limits*") == []
