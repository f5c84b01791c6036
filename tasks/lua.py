"""A step that Redis runs whole or not at all, in Lua, and what all of these steps may call."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, cast

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from tasks import counts, limits
from tasks.policy import RULES

_COMMON = (
    RULES
    + """
-- Redis' clock, what the service's lies behind it, and when that was last looked at. A step is one moment, and asks once.
local raw_clock, clock_shift, clock_seen
local function clocks()
  if not raw_clock then
    local t = redis.call('TIME')
    raw_clock = t[1] * 1000 + math.floor(t[2] / 1000)
    local shift, seen = string.match(redis.call('GET', 'rl:clock') or '', '^(-?%d+):(-?%d+)$')
    clock_shift, clock_seen = tonumber(shift or 0), tonumber(seen or raw_clock)
  end
  return raw_clock, clock_shift, clock_seen
end
local function set_clock(shift, seen)
  redis.call('SET', 'rl:clock', string.format('%.0f:%.0f', shift, seen))
  clock_shift, clock_seen = shift, seen
end
-- It stands still where it cannot be right, until somebody has looked.
local function stands()
  local raw, shift, seen = clocks()
  return math.abs(raw - shift - seen) > 30000
end
local function now()
  local raw, shift, seen = clocks()
  return stands() and seen or raw - shift
end
-- By the next look the clock goes on from where it should be, so a lease lasts for two more while it stands.
local function lease_end(ms)
  return now() + ms + (stands() and 10000 or 0)
end
-- No lease or deadline on the disk may be made after the last look that is there, and no job is older than the first look.
local function keep_clock()
  local _, shift = clocks()
  set_clock(shift, now())
end
"""
    + limits.RULES
    + counts.RULES
    + """
local function last_id(events)
  local entry = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  return entry and entry[1] or '0-0'
end
local function last_seq(events)
  return tonumber(string.match(last_id(events), '^%d+'))
end
local function tell(job, events, payload, attempt)
  local seq = last_seq(events) + 1
  local id = seq .. '-' .. (attempt or 0)
  redis.call('XADD', events, id, 'e', payload)
  redis.call('PUBLISH', job .. ':live', id .. ':' .. payload)
  return seq
end
local function bell(job)
  redis.call('PUBLISH', job .. ':live', '0:')
end
-- How many times as long a job takes on a board that heat slows down, as its worker told lately (`tasks/worker/pacing.py`).
local function slowed(model, batch)
  local kept, found, least = redis.call('HGETALL', 'rl:slowed:' .. model), {}, nil
  for place = 1, #kept, 2 do
    local slower, rests = string.match(kept[place + 1], '^(%S+) (%S+)$')
    found[kept[place]] = slower * (batch and rests or 1)
    least = math.min(least or found[kept[place]], found[kept[place]])
  end
  return found, least
end
-- How a model's queue stands: its gate, how many jobs run, and in how many ms a worker takes the next, an item of a `batch`
-- or another; 0: nothing is known.
local function standing(model, batch)
  -- A worker that is at its job for longer than jobs usually take is likely to be at it for as long again; and before any
  -- has ended, what the running ones have taken is all that is known.
  local running = redis.call('ZRANGE', 'rl:running:' .. model, 0, -1)
  local pace = tonumber(redis.call('HGET', 'rl:pace', model) or 0)
  local least
  for _, id in ipairs(running) do
    local age = now() - (redis.call('HGET', 'rl:{' .. id .. '}', 'started') or now())
    least = math.min(least or age, age)
  end
  local times, fewest = slowed(model, batch)
  local at_once = #running == 0 and 1 / (fewest or 1) or 0
  for _, id in ipairs(running) do
    at_once = at_once + 1 / (fewest and times[redis.call('HGET', 'rl:{' .. id .. '}', 'board')] or 1)
  end
  local free = math.floor(math.max(pace, least or 0) / at_once)
  return {redis.call('HGET', 'rl:gates', model), #running, free}
end
-- The readers but for this one.
local function without(readers, reader)
  local left = {}
  for each in string.gmatch(readers or '', '%S+') do
    if each ~= reader then left[#left + 1] = each end
  end
  return table.concat(left, ' ')
end
-- Those that ended lately, the newest first. Items of batches are shown with their batch, and would push out all others; those
-- that failed are rare enough. Past the append-only file: SD cards wear.
local function note_ended(job, state, lane)
  local id = string.match(job, '{(.*)}')
  redis.set_repl(redis.REPL_NONE)
  for key, noted in pairs({['rl:ended'] = lane ~= 'batch', ['rl:failed'] = state == 'failed'}) do
    if noted then
      redis.call('LPUSH', key, id)
      redis.call('LTRIM', key, 0, 99)
      redis.call('PEXPIRE', key, 86400000)
    end
  end
  redis.set_repl(redis.REPL_ALL)
end
-- The job waits and runs no more: whoever calls this has taken it off both sets.
local function finish(job, events, state, payload)
  local held = redis.call('HMGET', job, 'state', 'model', 'started', 'order', 'owner', 'fence', 'webhook', 'tokens',
    'lane')
  redis.call('HSET', job, 'state', state, 'end', payload, 'ended', now())
  note_ended(job, state, held[9])
  count_end(job, held[2], held[9], held[6], payload)
  if held[8] then charge(held[5], tonumber(held[8]), payload) end
  if held[7] then
    -- Beside the record, which may make room for others before anybody could be told.
    local id = string.match(job, '{(.*)}')
    redis.call('HSET', 'rl:webhooks', id, '0 ' .. state .. ' ' .. held[7])
    redis.call('ZADD', 'rl:webhooks:due', now(), id)
  end
  -- What nobody reads after the end is most of a record, and the record stays for a while.
  for _, name in ipairs(redis.call('HKEYS', job)) do
    if name == 'request' or string.find(name, '^prompt:') then redis.call('HDEL', job, name) end
  end
  redis.call('HDEL', job, 'readers', 'unread')
  local ttl = tonumber(redis.call('HGET', job, 'ttl'))
  redis.call('PEXPIRE', job, ttl)
  redis.call('PEXPIRE', events, ttl)
  redis.call('PEXPIRE', job .. ':kept', ttl)
  if held[1] == 'running' and held[3] then
    -- How long jobs hold a worker, the newest counting a quarter. Past the append-only file: it is worth little after a
    -- restart, and SD cards wear.
    local took = now() - held[3]
    local pace = redis.call('HGET', 'rl:pace', held[2]) or took
    redis.set_repl(redis.REPL_NONE)
    redis.call('HSET', 'rl:pace', held[2], math.floor(pace + (took - pace) / 4))
    redis.call('PEXPIRE', 'rl:pace', 3600000)
    redis.set_repl(redis.REPL_ALL)
  end
  local waiting, turns, lanes = 'rl:waiting:' .. held[2], 'rl:turns:' .. held[2], 'rl:lanes:' .. held[2]
  if redis.call('EXISTS', waiting, 'rl:running:' .. held[2]) == 0 then
    redis.call('DEL', turns, lanes)
  elseif held[1] == 'running' then
    redis.call('HSET', lanes, 'ended:' .. math.floor(held[4] / LANE), now())
  elseif not held[6] then
    give_back(waiting, turns, lanes, held[5], tonumber(held[4]))
  end
end
-- A queued job ends here; a running one is flagged and its worker told. The state it was in; nil: no such job.
local function cancel(job, events, waiting, id, reason, payload)
  local kept = redis.call('HMGET', job, 'state', 'worker', 'claim', 'cancel')
  if kept[1] == 'queued' then
    redis.call('ZREM', waiting, id)
    tell(job, events, payload)
    finish(job, events, 'cancelled', payload)
  elseif kept[1] == 'running' then
    if not kept[4] then redis.call('HSET', job, 'cancel', reason) end
    redis.call('PUBLISH', 'rl:control:' .. kept[2], 'cancel ' .. id .. ' ' .. kept[3])
  end
  return kept[1]
end
"""
)


_NO_NAMES = re.compile(r"--.*|'[^']*'")
_WORD = re.compile(r"\w+")


def _words(code: str) -> set[str]:
    return set(_WORD.findall(_NO_NAMES.sub("", code)))


def _part(code: str) -> tuple[set[str], set[str], str]:
    """The names that it makes, all words in it, and itself."""
    made = code.removeprefix("local ").removeprefix("function ").partition("(")[0].partition("=")[0]
    return set(_WORD.findall(made)), _words(code), code


_PARTS = [_part(code) for code in re.split(r"^(?=local )", _COMMON, flags=re.MULTILINE) if code.strip()]


def _called_by(source: str) -> str:
    """What of the common part is named in `source`, or in what that names. Redis makes all of a step's functions anew each
    time it runs, so those that it does not call would cost each token."""
    words, needed = _words(source), list[str]()
    for made, its_words, code in reversed(_PARTS):
        if made & words:
            needed.insert(0, code)
            words |= its_words
    return "".join(needed)


class Script:
    """One Lua step, sent by its digest; the source follows only when Redis has forgotten it.

    `flags` are those of Redis 7. `allow-oom` lets a step run while the memory is full: whatever goes on, ends or hands
    back a job must, since only that makes room. Without any, writing is refused in full memory before it begins.
    """

    def __init__(self, source: str, *, flags: str = "allow-oom") -> None:
        head = f"#!lua flags={flags}\n" if flags else ""
        self.source: Final = head + _called_by(source) + source
        self.digest: Final = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, keys: list[str], *args: str | bytes | int | float) -> object:
        """Run it from a thread."""
        try:
            return client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.source, len(keys), *keys, *args)

    def run_behind(
        self, client: redis.Redis, first: Sequence[str | float], keys: list[str], *args: str | bytes | int | float
    ) -> object:
        """Run it as soon as another command has its reply, for which Redis may have to wait: both are sent at once."""
        try:
            with client.pipeline(transaction=False) as pipe:
                pipe.execute_command(*first)  # type: ignore[no-untyped-call]
                pipe.evalsha(self.digest, len(keys), *keys, *args)
                return cast("list[object]", pipe.execute())[1]
        except NoScriptError:
            return client.eval(self.source, len(keys), *keys, *args)

    async def arun(self, client: redis.asyncio.Redis, keys: list[str], *args: str | bytes | int | float) -> object:
        """Run it from an event loop."""
        try:
            return await client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(self.source, len(keys), *keys, *args)
