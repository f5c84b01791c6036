"""Calls to webhooks: who is to be told that a job has ended. One process at a time holds a call, and others after its time."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import redis.asyncio

from tasks import keys
from tasks.connection import unavailable_as_refusal
from tasks.jobs import JobState
from tasks.lua import Script


class Call(msgspec.Struct, frozen=True):
    """One of them: the job that has ended, and how; the address; which attempt this is, from 1; and until when whoever took it
    holds it, which is its fence."""

    job: str
    state: JobState
    url: str
    attempt: int
    held: int


_TAKE = Script(
    """
-- KEYS calls due   ARGV most hold-ms -> {job, held, ATTEMPTS STATE URL, ...} of those whose time has come
local found = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now(), 'LIMIT', 0, ARGV[1])) do
  local attempts, rest = string.match(redis.call('HGET', KEYS[1], job) or '', '^(%d+) (.*)$')
  if attempts then
    local held, said = now() + ARGV[2], (attempts + 1) .. ' ' .. rest
    redis.call('HSET', KEYS[1], job, said)
    redis.call('ZADD', KEYS[2], held, job)
    found[#found + 1] = job
    found[#found + 1] = held
    found[#found + 1] = said
  else
    redis.call('ZREM', KEYS[2], job)
  end
end
return found
"""
)
_SETTLE = Script(
    """
-- KEYS calls due   ARGV job held again-ms -> 1, or 0: somebody else holds it.  Over, or due again in so long where that is said.
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] ~= '' then
  redis.call('ZADD', KEYS[2], now() + ARGV[3], ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return 1
"""
)


class CallBook:
    """The calls that are to be made. Its methods raise `QueueUnavailable` while Redis is away."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def take(self, most: int, seconds: float) -> list[Call]:
        """Hold those whose time has come, for so long."""
        with unavailable_as_refusal():
            flat = cast(
                "list[Any]",
                await _TAKE.arun(self._client, [keys.WEBHOOKS, keys.WEBHOOKS_DUE], most, int(seconds * 1000)),
            )
        return [_call(*flat[place : place + 3]) for place in range(0, len(flat), 3)]

    async def settle(self, call: Call, again: float | None = None) -> bool:
        """It is over, or due again in `again` seconds; false when it is somebody else's by now."""
        with unavailable_as_refusal():
            return bool(
                await _SETTLE.arun(
                    self._client,
                    [keys.WEBHOOKS, keys.WEBHOOKS_DUE],
                    *(call.job, call.held, "" if again is None else int(again * 1000)),
                )
            )


def _call(job: bytes, held: int, said: bytes) -> Call:
    attempt, state, url = said.decode().split(" ", 2)
    return Call(job.decode(), JobState(state), url, int(attempt), held)
