"""Jobs for tests: accepted, claimed, written to, and taken for lost."""

from __future__ import annotations

import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, HandedBack, claim_next, hand_back
from tasks.events import Finished, FinishReason, Timings, Usage
from tasks.jobs import Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter

HELLO = ChatRequest(messages=(Message("user", "hello"),))
DONE = Finished(FinishReason.STOP, Usage(3, 2), Timings())


async def accept(store: JobStore, *, lane: Lane = Lane.INTERACTIVE, deadline: float | None = None) -> str:
    job = new_job_id()
    await store.accept(job, "echo", HELLO, lane=lane, owner="", deadline=deadline)
    return job


def claim(
    client: redis.Redis,
    *,
    worker: str = "w",
    call_id: str = "c",
    lease: float = 10,
    attempt: int | None = None,
    call_within: float = 0.0,
) -> Claim | None:
    return claim_next(
        *(client, "echo"),
        worker=worker,
        board="b",
        child=1,
        call_id=call_id,
        lease=lease,
        attempt=attempt,
        call_within=call_within,
    )


def clock(client: redis.Redis) -> int:
    """Milliseconds by Redis' clock."""
    seconds, micros = client.time()  # type: ignore[misc]
    return int(seconds) * 1000 + int(micros) // 1000


def lapsed(client: redis.Redis, held: Claim) -> bool:
    return clock(client) > client.zscore(keys.running("echo"), held.job)  # type: ignore[operator]


def past_deadline(client: redis.Redis, job: str) -> bool:
    return clock(client) > int(client.hget(keys.job(job), "deadline"))  # type: ignore[arg-type]


def taken_for_lost(client: redis.Redis, held: Claim) -> HandedBack:
    """What the sweep does with a lapsed lease."""
    return hand_back(client, "echo", held.job, held.token, "vanished", crashed=True, lapsed_only=True)


def write(client: redis.Redis, claim: Claim, on_cancel: object = None) -> EventWriter:
    return EventWriter(client, claim.job, claim.model, claim.token, claim.seq, on_cancel or (lambda: None), patience=5)
