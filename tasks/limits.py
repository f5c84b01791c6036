"""What the owner of an API key may ask for: requests and tokens in a minute, and jobs at once.

Requests and tokens lie in buckets that hold what a minute allows and fill evenly, so that nobody waits for a minute to turn. A
request costs one when its job is accepted. Tokens are known when a job ends, those of its prompt and of its answer; they are
taken then, and while more were used than there are, nothing new is accepted. Items of batches are not counted: they are let in
by a window of their own, and go behind everybody else.

`RULES` is that in Lua, for the scripts, over two keys of each owner that is limited:

  rl:limits:OWNER        hash   requests, tokens -> when that bucket will be full again, ms; past the append-only file
  rl:limits:OWNER:jobs   set    its jobs; those that have ended leave when room is looked for
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The most that an owner may have; None is no limit."""

    requests: Count | None = None
    """In a minute."""
    tokens: Count | None = None
    """In a minute, of prompts and answers."""
    jobs: Count | None = None
    """At once, waiting or running."""

    def words(self) -> str:
        """As the scripts read it."""
        return " ".join(str(limit or 0) for limit in (self.requests, self.tokens, self.jobs))


class Bucket(msgspec.Struct, frozen=True):
    """How much of a limit is left, and in how many seconds all of it is there again."""

    limit: int
    left: int
    full_in: float


class Allowance(msgspec.Struct, frozen=True):
    """What is left to an owner of what it may have in a minute, where that is limited."""

    requests: Bucket | None
    tokens: Bucket | None


RULES = """
-- What is left in a bucket, which may be less than nothing, and in how many ms it is full.
local function bucket(owner, name, limit)
  local wait = math.max(0, (redis.call('HGET', 'rl:limits:' .. owner, name) or 0) - now())
  return limit - wait * limit / 60000, wait
end
local function take(owner, name, limit, amount)
  local key = 'rl:limits:' .. owner
  local _, wait = bucket(owner, name, limit)
  local full = wait + amount * 60000 / limit
  local kept = redis.call('PTTL', key)
  redis.set_repl(redis.REPL_NONE)
  redis.call('HSET', key, name, string.format('%.3f', now() + full))
  redis.call('PEXPIRE', key, math.ceil(math.max(kept, full)) + 1000)
  redis.set_repl(redis.REPL_ALL)
end
-- How many jobs the owner has, told exactly only where it may have no more.
local function jobs_of(owner, limit)
  local key = 'rl:limits:' .. owner .. ':jobs'
  local count = redis.call('SCARD', key)
  if count < limit then return count end
  for _, id in ipairs(redis.call('SMEMBERS', key)) do
    local kept = redis.call('HMGET', 'rl:{' .. id .. '}', 'state', 'ended')
    if not kept[1] or kept[2] then
      redis.call('SREM', key, id)
      count = count - 1
    end
  end
  return count
end
local function numbers(limits)
  local found = {}
  for word in string.gmatch(limits, '%d+') do found[#found + 1] = tonumber(word) end
  return found[1] or 0, found[2] or 0, found[3] or 0
end
-- Which limit the owner has reached, and in how many ms it may try again; nothing: none.
local function reached(owner, limits)
  local requests, tokens, jobs = numbers(limits)
  if jobs > 0 and jobs_of(owner, jobs) >= jobs then return 'jobs', jobs, 2000 end
  if requests > 0 then
    local left = bucket(owner, 'requests', requests)
    if left < 1 then return 'requests', requests, math.ceil((1 - left) * 60000 / requests) end
  end
  if tokens > 0 then
    local left = bucket(owner, 'tokens', tokens)
    if left < 1 then return 'tokens', tokens, math.ceil((1 - left) * 60000 / tokens) end
  end
end
-- The owner has one job more, which it may have for so many ms. The limit that its tokens are counted for, or 0.
local function admit(owner, limits, id, ms)
  local requests, tokens, jobs = numbers(limits)
  if requests > 0 then take(owner, 'requests', requests, 1) end
  if jobs > 0 then
    local key = 'rl:limits:' .. owner .. ':jobs'
    redis.call('SADD', key, id)
    redis.call('PEXPIRE', key, math.max(redis.call('PTTL', key), ms))
  end
  return tokens
end
-- {requests left, ms until all are, tokens left, ms likewise}, or nothing where nothing is limited.
local function allowance(owner, limits)
  if limits == '' then return end
  local found = {}
  local requests, tokens = numbers(limits)
  for name, limit in pairs({requests = requests, tokens = tokens}) do
    local left, wait = 0, 0
    if limit > 0 then left, wait = bucket(owner, name, limit) end
    found[name] = {math.floor(math.max(0, left)), math.ceil(wait)}
  end
  return {found.requests[1], found.requests[2], found.tokens[1], found.tokens[2]}
end
-- A job of a limited owner has ended with these events.
local function charge(owner, limit, payload)
  local events = cmsgpack.unpack(payload)[2]
  local last = events[#events]
  if last[1] == 'finished' then take(owner, 'tokens', limit, last[3][1] + last[3][2]) end
end
"""
