"""The jobs that wait for one model, and workers that take them, for tests of whose turn it is."""

from __future__ import annotations

import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, HandedBack, Later, Renewal, claim_next, hand_back, renew
from tasks.events import Failed, FailureCode, encode_events
from tasks.jobs import Lane, new_job_id
from tasks.policy import Ageing
from tasks.requests import ChatRequest, Message
from tasks.scripts import FAIL_QUEUED
from tasks.store import JobStore
from tasks.stream import EventWriter
from tests.tasks.jobs import DONE, HELLO


class Queue:
    """The jobs of one model, and workers that take them."""

    def __init__(self, client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
        self.client = client
        # Far from Redis' own, so it stands: no time passes that a test does not let pass.
        client.set(keys.CLOCK, "0:1000000000")
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
