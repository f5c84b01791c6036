"""Queues as people ask for them by model: looked at by everybody; paused, drained and emptied by administrators."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence, Set
from typing import Any, NamedTuple, cast

import msgspec
import redis.asyncio

from tasks import keys
from tasks.connection import text, unavailable_as_refusal
from tasks.counts import Counts
from tasks.errors import JobNotFound
from tasks.jobs import ENDED, JobState, JobView, Lane
from tasks.lua import Script
from tasks.policy import LANE, rank
from tasks.queue import call
from tasks.scripts import CALL
from tasks.standing import Gate, Standing, read_standing
from tasks.store import JobStore

_QUEUES = Script(
    """
-- ARGV n-lanes lower-bound ... upper-bound ... model ... -> {standing, {waiting in each lane}, ms its jobs take or nil} of each
local found, lanes = {}, tonumber(ARGV[1])
for place = 2 + 2 * lanes, #ARGV do
  local model, waiting = ARGV[place], {}
  for lane = 1, lanes do
    waiting[lane] = redis.call('ZCOUNT', 'rl:waiting:' .. model, ARGV[1 + lane], ARGV[1 + lanes + lane])
  end
  found[#found + 1] = {standing(model), waiting, redis.call('HGET', 'rl:pace', model)}
end
return found
""",
    flags="no-writes",
)


class QueueView(msgspec.Struct, frozen=True):
    """One model's queue. `waiting` is by lane; `job_seconds` is how long its jobs have lately held a worker, None when none
    has for an hour."""

    standing: Standing
    waiting: dict[Lane, int]
    job_seconds: float | None


class Held(NamedTuple):
    """A job in a queue, and whose it is."""

    id: str
    state: JobState
    owner: str
    lane: Lane


class QueueBook:
    """Its methods raise `QueueUnavailable`. They take models by their ids."""

    def __init__(self, client: redis.asyncio.Redis, store: JobStore) -> None:
        self._client = client
        self._store = store

    async def view(self, models: Sequence[str]) -> list[QueueView]:
        """How the queues of these models stand."""
        with unavailable_as_refusal():
            bounds = [f"{rank(lane) * LANE}" for lane in Lane] + [f"({(rank(lane) + 1) * LANE}" for lane in Lane]
            replies = cast("list[list[Any]]", await _QUEUES.arun(self._client, [], len(Lane), *bounds, *models))
        return [
            QueueView(
                read_standing(standing), dict(zip(Lane, waiting, strict=True)), int(pace) / 1000 if pace else None
            )
            for standing, waiting, pace in replies
        ]

    async def counts(self) -> Counts:
        """What became of the jobs of all models."""
        with unavailable_as_refusal():
            fields = cast("dict[bytes, bytes]", await self._client.hgetall(keys.COUNTS))
        return Counts({text(field): int(count) for field, count in fields.items()})

    async def set_gate(self, model: str, gate: Gate) -> None:
        """Let through what it says, from now on and until it is told otherwise."""
        with unavailable_as_refusal():
            if gate is Gate.OPEN:
                await self._client.hdel(keys.GATES, model)
            else:
                await self._client.hset(keys.GATES, model, gate.value)
            if gate is Gate.PAUSED:
                return
            # While it was paused, calls found nothing, and were not topped up.
            missing = await self._client.zcard(keys.waiting(model)) - await self._client.llen(keys.calls(model))
            for _ in range(missing):
                await CALL.arun(self._client, [keys.calls(model)], call(model, "", ""))

    async def held(self, model: str) -> list[Held]:
        """The jobs that wait, in their order, and those that run."""
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zrange(keys.waiting(model), 0, -1)
                pipe.zrange(keys.running(model), 0, -1)
                ids = [text(job) for found in await pipe.execute() for job in found]
                for job in ids:
                    pipe.hmget(keys.job(job), "state", "owner", "lane")
                records = await pipe.execute()
        return [
            Held(job, JobState(text(state)), text(owner), Lane(text(lane)))
            for job, (state, owner, lane) in zip(ids, records, strict=True)
            if state is not None
        ]

    async def list_jobs(self, models: Sequence[str], states: Set[JobState], limit: int) -> list[JobView]:
        """Jobs in these states: those of these models that run and that wait, in their order, and those that ended lately, the
        newest first. Items of batches that ended well are not among them."""
        ids: list[str] = []
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=False) as pipe:
                for state, name in ((JobState.RUNNING, keys.running), (JobState.QUEUED, keys.waiting)):
                    for model in models if state in states else ():
                        pipe.zrange(name(model), 0, limit - 1)
                if states == {JobState.FAILED}:
                    pipe.lrange(keys.FAILED, 0, -1)
                elif states & ENDED:
                    pipe.lrange(keys.ENDED, 0, -1)
                ids = [text(job) for found in await pipe.execute() for job in found]
        views: list[JobView] = []
        for job in dict.fromkeys(ids):
            with contextlib.suppress(JobNotFound):
                view = await self._store.view(job)
                if view.state in states:
                    views.append(view)
            if len(views) == limit:
                break
        return views

    async def cancel(self, model: str, *, running: bool, owner: str | None = None, lane: Lane | None = None) -> int:
        """Cancel what waits, and with `running` what runs, of this owner and in this lane where they are given; how many."""
        cancelled = 0
        for job in await self.held(model):
            if job.state is JobState.RUNNING and not running:
                continue
            if (owner is not None and job.owner != owner) or (lane is not None and job.lane is not lane):
                continue
            try:
                state = await self._store.cancel(job.id, "cancelled by an administrator")
            except JobNotFound:
                continue
            cancelled += state not in ENDED
        return cancelled
