"""The steps of a job's life that must be one step: Lua, run by Redis, each either whole or not at all.

Written down together because they share the record's fields:

  model kind lane owner created deadline ttl   set by `ACCEPT`, never changed, but for the ttl of what is to be forgotten
  order     the score in the waiting set, which `tasks/policy.py` explains
  adapter   likewise: the adapter that answers, where one does
  prefix    likewise: a digest of what its prompt begins with, of batch items
  front head   likewise: how the answer is said, where it may be said again
  webhook   likewise: the address that is told of the end
  trace     likewise: the span of the request, where somebody traces it (`tasks/tracing.py`)
  tokens    likewise: how many its owner may use in a minute, where that is limited (`tasks/limits.py`)
  asked     likewise: a digest of what its client asked, where it may ask for the job again
  grace     likewise: how long the job goes on while nobody reads its answer; nothing is not at all
  readers   PROCESS/STREAM of whoever reads the answer, with spaces between. A job that nobody was to read has none, ever
  unread    since nobody does: when the job is cancelled unless somebody comes
  request   what the client wants, as `ACCEPT` was told it, until the job ends
  state     queued | running | finished | failed | cancelled
  fence     counts the claims
  claim     the newest claim's token, FENCE-ATTEMPT; whoever writes must hold it. The attempt is a number nobody can guess:
            a Redis that came back without its last moment counts from the same fence again
  failures  claims that ended by a crash, a stall or a lapsed lease
  history   why each of those ended, a line each
  worker child board call started phase done   of the newest claim; `phase` is loading, prefill or decode
  since waited prefill paused pausing through passed   of its waits and pauses: `tasks/policy.py`
  pauses    how often it was paused
  ahead     how many jobs its workers had and would take before it, when it was accepted
  behind    of those STATE:LANE:ID, three at most; not of batch items
  home      where its conversation was in a cache when it was first claimed: new | here | elsewhere | gone
  claims    of each claim that ended before the job did a line, SINCE STARTED ENDED BOARD, a tab and WHY: when it began to wait,
            was claimed and handed back; as many as fit into 8000 bytes
  read      tokens of the prompt that claims had prefilled, the one that came farthest
  decoded   ms that the engines of claims took that ended before the job did, where they could tell
  again     tokens that were prefilled once more because a claim had ended early
  sent      1 once a client may have seen a part of the answer
  once      1 where an answer that was begun cannot be gone on with: its tokens are not known
  language  digest of the tokenizer that `prompt:I` and the pieces are ids of
  cancel    why the job is to end early, once somebody asked
  prompt:I  the token ids of prompt I as the model saw them, int32 little-endian, until the job ends
  end ended the last event as bytes, and when it was written

Every stream entry has as its id SEQ-ATTEMPT, the number of its last event and the attempt of the claim that wrote it (0 when
none did), as `e` the events and as `p` the pieces they came from. Its message on the channel is SEQ-ATTEMPT:EVENTS.
Times are milliseconds by the service's clock: Redis' own without its jumps (`tasks/clock.py`).
"""

from __future__ import annotations

import hashlib
from typing import Final

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from tasks import counts, limits
from tasks.policy import RULES

_COMMON = (
    RULES
    + """
-- Redis' clock, what the service's lies behind it, and when that was last looked at.
local function clocks()
  local t = redis.call('TIME')
  local raw = t[1] * 1000 + math.floor(t[2] / 1000)
  local shift, seen = string.match(redis.call('GET', 'rl:clock') or '', '^(-?%d+):(-?%d+)$')
  return raw, tonumber(shift or 0), tonumber(seen or raw)
end
local function set_clock(shift, seen)
  redis.call('SET', 'rl:clock', string.format('%.0f:%.0f', shift, seen))
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


class Script:
    """One Lua step, sent by its digest; the source follows only when Redis has forgotten it.

    `flags` are those of Redis 7. `allow-oom` lets a step run while the memory is full: whatever goes on, ends or hands
    back a job must, since only that makes room. Without any, writing is refused in full memory before it begins.
    """

    def __init__(self, source: str, *, flags: str = "allow-oom") -> None:
        head = f"#!lua flags={flags}\n" if flags else ""
        self.source: Final = head + _COMMON + source
        self.digest: Final = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, keys: list[str], *args: str | bytes | int | float) -> object:
        """Run it from a thread."""
        try:
            return client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.source, len(keys), *keys, *args)

    async def arun(self, client: redis.asyncio.Redis, keys: list[str], *args: str | bytes | int | float) -> object:
        """Run it from an event loop."""
        try:
            return await client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(self.source, len(keys), *keys, *args)


ACCEPT = Script(
    """
-- KEYS job events waiting running order calls turns lanes refusal gates kept
-- ARGV id limit rank first-event deadline-ms call model owner what-is-kept owner's-limits field value ...
-- -> {1 accepted or 0 full, waiting, place, standing, allowance}, {-1, why none is accepted}, {-2}: this queue is draining, or
-- {-3, limit that the owner has reached, its size, ms until it may try again, allowance}
-- Sent twice with one id it accepts once.
-- What waits behind it takes no place from it: a queue full of batch items has room for a chat.
local function ahead()
  return redis.call('ZCOUNT', KEYS[3], '-inf', string.format('(%.0f', (ARGV[3] + 1) * LANE))
end
local function answer(accepted)
  return {accepted, ahead(), redis.call('ZRANK', KEYS[3], ARGV[1]) or -1, standing(ARGV[7], ARGV[3] == '2'),
    allowance(ARGV[8], ARGV[10])}
end
if redis.call('EXISTS', KEYS[1]) == 1 then return answer(1) end
local refusal = redis.call('GET', KEYS[9])
if refusal then return {-1, refusal} end
if redis.call('HGET', KEYS[10], ARGV[7]) == 'draining' then return {-2} end
local which, size, wait = reached(ARGV[8], ARGV[10])
if which then return {-3, which, size, wait, allowance(ARGV[8], ARGV[10])} end
if ahead() >= tonumber(ARGV[2]) then return answer(0) end
local waiting = redis.call('ZCARD', KEYS[3])
local order = line_up(KEYS[7], KEYS[8], ARGV[3], ARGV[8], redis.call('INCR', KEYS[5]))
keep_clock()
local created = now()
redis.call('HSET', KEYS[1], 'state', 'queued', 'order', string.format('%.0f', order), 'created', created,
  'since', created, 'deadline', created + ARGV[5], 'model', ARGV[7], 'owner', ARGV[8], unpack(ARGV, 11))
local tokens = admit(ARGV[8], ARGV[10], ARGV[1], ARGV[5])
if tokens > 0 then redis.call('HSET', KEYS[1], 'tokens', tokens) end
if ARGV[9] ~= '' then redis.call('SET', KEYS[11], ARGV[9]) end
redis.call('XADD', KEYS[2], '1-0', 'e', ARGV[4])
redis.call('ZADD', KEYS[3], order, ARGV[1])
local place = redis.call('ZRANK', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[1], 'ahead', place + redis.call('ZCARD', KEYS[4]))
if order < 2 * LANE then
  -- Of batch items nobody asks that, and there are many.
  local behind = {}
  local function note(ids, state)
    for _, id in ipairs(ids) do
      local lane = redis.call('HGET', 'rl:{' .. id .. '}', 'lane') or ''
      behind[#behind + 1] = state .. ':' .. lane .. ':' .. id
    end
  end
  note(redis.call('ZRANGE', KEYS[4], 0, 2), 'running')
  local first = math.max(0, place - 3 + #behind)
  if first < place then note(redis.call('ZRANGE', KEYS[3], first, place - 1), 'waiting') end
  if #behind > 0 then redis.call('HSET', KEYS[1], 'behind', table.concat(behind, ' ')) end
end
if order < LANE then
  -- Whoever runs what a chat need not wait for looks at once; the next renewal would tell it as well.
  for _, id in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    local kept = redis.call('HMGET', 'rl:{' .. id .. '}', 'order', 'worker', 'claim')
    if kept[3] and tonumber(kept[1]) >= LANE then
      redis.call('PUBLISH', 'rl:control:' .. kept[2], 'chat ' .. id .. ' ' .. kept[3])
    end
  end
end
-- As many calls as jobs that wait are enough: one call serves several, so the rest would pile up while a worker is busy.
if redis.call('LLEN', KEYS[6]) < waiting + 1 then redis.call('LPUSH', KEYS[6], ARGV[6]) end
return answer(1)
""",
    flags="",  # what is new waits for room; sent again, what was accepted before it ran out stays accepted
)

CLAIM = Script(
    """
-- KEYS waiting running turns lanes calls
-- ARGV worker board child call lease-ms started-event deadline-event attempt background-ms batch-ms prefix model call-sent-on
-- kin job-to-share-a-run-with its-claim (these are empty but where several jobs are taken for one run) ms-without-batch-items
-- 1-where-the-engine-parks
-- -> {id, seq, field, value, ...} of the job now held, or nil; where only jobs wait that are paused, left to another board, or
-- items of batches while the worker rests, after how many ms one may go on.
-- Jobs past their deadline end on the way.
-- Sent twice with one attempt it claims once, and gives the same job again.
local function held(id, job, seq)
  redis.call('ZADD', KEYS[2], lease_end(ARGV[5]), id)
  return {id, seq, unpack(redis.call('HGETALL', job))}
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local job = 'rl:{' .. id .. '}'
  local kept = redis.call('HMGET', job, 'state', 'claim')
  if kept[1] == 'running' and string.match(kept[2], '%d+$') == ARGV[8] then
    return held(id, job, last_seq(job .. ':events'))
  end
end
if queue_paused(KEYS[1]) then return nil end
while true do
  local id, through, soonest, other
  if ARGV[14] ~= '' then
    id = of_kin(KEYS[1], KEYS[4], now(), ARGV[14])
    if not id then return nil end
  else
    id, through, soonest, other = choose(KEYS[1], KEYS[4], now(), ARGV[9], ARGV[10], ARGV[12], ARGV[2],
      tonumber(ARGV[17]))
  end
  if not id then
    local left = other and redis.call('HGET', 'rl:{' .. other .. '}', 'left') or ' '
    if other and not string.find(left, ' ' .. ARGV[2] .. ' ', 1, true) then
      redis.call('HSET', 'rl:{' .. other .. '}', 'left', left .. ARGV[2] .. ' ')
      redis.call('LPUSH', KEYS[5], ARGV[13])
    end
    return soonest
  end
  local turn = redis.call('ZSCORE', KEYS[1], id)
  if not through and ARGV[14] == '' then id = like_the_last(KEYS[1], id, ARGV[11]) end
  redis.call('ZREM', KEYS[1], id)
  local job = 'rl:{' .. id .. '}'
  local events = job .. ':events'
  local kept = redis.call('HMGET', job, 'state', 'deadline', 'order', 'since', 'talk', 'follows')
  if kept[1] == 'queued' then
    take_turn(KEYS[3], KEYS[4], tonumber(turn))
    if tonumber(kept[2]) < now() then
      tell(job, events, ARGV[7])
      finish(job, events, 'failed', ARGV[7])
    else
      keep_clock()
      local fence = redis.call('HINCRBY', job, 'fence', 1)
      redis.call('HSET', job, 'state', 'running', 'phase', 'loading', 'worker', ARGV[1], 'board', ARGV[2],
        'child', ARGV[3], 'call', ARGV[4], 'claim', fence .. '-' .. ARGV[8], 'started', now())
      if fence == 1 then redis.call('HSET', job, 'home', where_kept(ARGV[12], ARGV[2], kept[6])) end
      redis.call('HINCRBY', job, 'waited', math.abs(now() - kept[4]))
      redis.call('HDEL', job, 'paused', 'left', 'together', 'goes_to')
      if ARGV[15] ~= '' then
        redis.call('HSET', job, 'together', 1)
        local lead = 'rl:{' .. ARGV[15] .. '}'
        if redis.call('HGET', lead, 'claim') == ARGV[16] then redis.call('HSET', lead, 'together', 1) end
      end
      note_last(ARGV[12], ARGV[2], kept[5], kept[6], tonumber(kept[3]) < LANE, ARGV[18] == '1')
      if through then redis.call('HSET', job, 'through', 1) end
      return held(id, job, tell(job, events, ARGV[6], ARGV[8]))
    end
  end
end
"""
)

APPEND = Script(
    """
-- KEYS job events running   ARGV claim after seq events pieces [state end | -] [field value ...]
-- -> 0 written, 1 written and the job is to be cancelled, -1 the claim is not ours any more, -2-N not written: the record
-- ends at N, before the number `after` that is to stand before this append, and may have no hole.
-- Sent twice it writes once: what the record has is not written again.
local kept = redis.call('HMGET', KEYS[1], 'claim', 'state', 'cancel')
if kept[1] ~= ARGV[1] then return -1 end
if kept[2] ~= 'running' then
  if ARGV[6] and kept[2] == ARGV[6] then return 0 end
  return -1
end
local last = last_seq(KEYS[2])
if last < tonumber(ARGV[2]) then return -2 - last end
if last < tonumber(ARGV[3]) then
  local id = ARGV[3] .. string.match(ARGV[1], '%-%d+$')
  if ARGV[5] == '' then
    redis.call('XADD', KEYS[2], id, 'e', ARGV[4])
  else
    redis.call('XADD', KEYS[2], id, 'e', ARGV[4], 'p', ARGV[5])
  end
  redis.call('PUBLISH', KEYS[1] .. ':live', id .. ':' .. ARGV[4])
end
if ARGV[6] == '-' then
  redis.call('HSET', KEYS[1], unpack(ARGV, 7))
elseif ARGV[6] then
  redis.call('ZREM', KEYS[3], string.match(KEYS[1], '{(.*)}'))
  if ARGV[8] then redis.call('HSET', KEYS[1], unpack(ARGV, 8)) end
  finish(KEYS[1], KEYS[2], ARGV[6], ARGV[7])
end
return kept[3] and 1 or 0
"""
)

RENEW = Script(
    """
-- KEYS job running waiting   ARGV id claim lease-ms phase done can-be-paused
-- -> 0 renewed, 1 renewed and the job is to be cancelled, 2 its deadline has passed, 3 renewed and it is to be paused,
-- -1 the claim is not ours any more.
-- Written past the append-only file: a lease is worth nothing after a restart, and SD cards wear.
redis.set_repl(redis.REPL_NONE)
local kept = redis.call('HMGET', KEYS[1], 'claim', 'state', 'cancel', 'phase', 'deadline')
if kept[1] ~= ARGV[2] or kept[2] ~= 'running' then return -1 end
redis.call('ZADD', KEYS[2], lease_end(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[1], 'phase', ARGV[4], 'done', ARGV[5])
if kept[4] ~= ARGV[4] then bell(KEYS[1]) end
if tonumber(kept[5]) < now() then return 2 end
if kept[3] then return 1 end
return must_pause(KEYS[3], KEYS[2], ARGV[1], ARGV[6] == '1') and 3 or 0
"""
)

HAND_BACK = Script(
    """
-- KEYS job events waiting running calls
-- ARGV id claim lapsed-only crashed final cut-off-event given-up-event most-failures cancelled-event call why read-again
-- ms-that-the-prefill-took board-that-reads-it decode-ms; the first is empty but for a job that is paused, the second where
-- none does
-- -> 0 nothing to do, 1 failed, 2 waiting again, with a new call, 3 cancelled meanwhile
local kept = redis.call('HMGET', KEYS[1],
  'claim', 'state', 'sent', 'order', 'cancel', 'once', 'history', 'done', 'prefill', 'read', 'call', 'together',
  'claims', 'since', 'started', 'board')
if not kept[2] then
  redis.call('ZREM', KEYS[4], ARGV[1])
  return 0
end
if kept[1] ~= ARGV[2] or kept[2] ~= 'running' then return 0 end
if ARGV[3] == '1' then
  local lease = redis.call('ZSCORE', KEYS[4], ARGV[1])
  if lease and tonumber(lease) > now() then return 0 end
end
redis.call('ZREM', KEYS[4], ARGV[1])
local failures = 0
if ARGV[4] == '1' then
  -- Of jobs that shared a run nobody knows which one it was.
  if kept[12] then redis.call('HSET', KEYS[1], 'alone', 1)
  else failures = redis.call('HINCRBY', KEYS[1], 'failures', 1) end
  redis.call('HSET', KEYS[1], 'history', (kept[7] or '') .. ARGV[11] .. '\\n')
  -- Who is dead acknowledges nothing: Celery would keep its call for an hour and then send it again.
  redis.call('HDEL', 'rl:unacked', kept[11] or '')
  redis.call('ZREM', 'rl:unacked_index', kept[11] or '')
end
if ARGV[12] ~= '0' then redis.call('HINCRBY', KEYS[1], 'again', ARGV[12]) end
if ARGV[15] ~= '0' then redis.call('HINCRBY', KEYS[1], 'decoded', ARGV[15]) end
local payload
if kept[5] then payload = ARGV[9]
elseif kept[3] and (kept[6] or ARGV[5] == '1') then payload = ARGV[6]
elseif failures >= tonumber(ARGV[8]) then payload = ARGV[7] end
if payload then
  tell(KEYS[1], KEYS[2], payload)
  finish(KEYS[1], KEYS[2], kept[5] and 'cancelled' or 'failed', payload)
  return kept[5] and 3 or 1
end
local claims = kept[13] or ''
if kept[14] and kept[15] and kept[16] and #claims < 8000 then  -- an earlier release claimed without them
  claims = claims .. table.concat({kept[14], kept[15], now(), kept[16]}, ' ') .. '\\t' .. string.sub(ARGV[11], 1, 200) .. '\\n'
  redis.call('HSET', KEYS[1], 'claims', claims)
end
redis.call('HSET', KEYS[1], 'state', 'queued', 'since', now(),
  'read', math.max(kept[8] or 0, kept[10] or 0))
redis.call('HDEL', KEYS[1], 'phase', 'worker', 'child', 'board', 'call', 'claim', 'done', 'pausing', 'through', 'together')
if ARGV[14] ~= '' then redis.call('HSET', KEYS[1], 'goes_to', ARGV[14]) end
if ARGV[13] ~= '' then
  redis.call('HSET', KEYS[1], 'paused', 1, 'prefill', math.max(kept[9] or 0, ARGV[13]))
  redis.call('HINCRBY', KEYS[1], 'pauses', 1)
end
redis.call('ZADD', KEYS[3], kept[4], ARGV[1])
redis.call('LPUSH', KEYS[5], ARGV[10])
bell(KEYS[1])
return 2
"""
)

CANCEL = Script(
    """
-- KEYS job events waiting   ARGV id reason finished-event -> the state it was in, or nil: no such job
return cancel(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3])
"""
)

ATTEND = Script(
    """
-- KEYS job events   ARGV reader -> {last-entry, field, value, ...}, or nil: no such job.
-- From now on the reader reads its answer, too.
-- A job that nobody was to read is no reader's to keep or to end. Sent twice it notes the name twice; `LEAVE` takes both away.
local kept = redis.call('HMGET', KEYS[1], 'state', 'readers', 'unread')
if not kept[1] then return nil end
if kept[2] or kept[3] then
  redis.call('HSET', KEYS[1], 'readers', (kept[2] or '') .. ' ' .. ARGV[1])
  redis.call('HDEL', KEYS[1], 'unread')
end
return {last_id(KEYS[2]), unpack(redis.call('HGETALL', KEYS[1]))}
"""
)

LEAVE = Script(
    """
-- KEYS job events waiting   ARGV id reader reason finished-event -> ms it may still go on unread; 0: it ends, or is read
-- The reader reads no more; '' is nobody. Once the last has left, the job has its grace, and is then cancelled by whoever
-- asks next.
local kept = redis.call('HMGET', KEYS[1], 'readers', 'unread', 'grace')
local unread = kept[2]
if kept[1] then
  local left = without(kept[1], ARGV[2])
  if left ~= '' then
    redis.call('HSET', KEYS[1], 'readers', left)
    return 0
  end
  unread = now() + (kept[3] or 0)
  redis.call('HDEL', KEYS[1], 'readers')
  redis.call('HSET', KEYS[1], 'unread', unread)
end
if not unread then return 0 end
local wait = unread - now()
if wait > 0 then return wait end
cancel(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[3], ARGV[4])
return 0
"""
)

FORGET = Script(
    """
-- KEYS job events kept waiting   ARGV id reason finished-event ttl-ms -> 1 forgotten, or nil: no such job
-- What is kept goes at once, and the record with it; that of a job that still runs as soon as whoever reads its end had time to.
local state = cancel(KEYS[1], KEYS[2], KEYS[4], ARGV[1], ARGV[2], ARGV[3])
if not state then return nil end
redis.call('DEL', KEYS[3])
if state == 'running' then
  redis.call('HSET', KEYS[1], 'ttl', ARGV[4])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return 1
"""
)

CALL = Script(
    """
-- KEYS calls   ARGV call -> nothing.  Also while the memory is full: a job that waits without a call is never served.
redis.call('LPUSH', KEYS[1], ARGV[1])
"""
)

FAIL_QUEUED = Script(
    """
-- KEYS job events waiting   ARGV id failed-event past-deadline-only -> 1 failed now, 0 it was not waiting any more
local kept = redis.call('HMGET', KEYS[1], 'state', 'deadline')
if kept[1] ~= 'queued' then
  if not kept[1] then redis.call('ZREM', KEYS[3], ARGV[1]) end
  return 0
end
if ARGV[3] == '1' and tonumber(kept[2]) >= now() then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
tell(KEYS[1], KEYS[2], ARGV[2])
finish(KEYS[1], KEYS[2], 'failed', ARGV[2])
return 1
"""
)

VIEW = Script(
    """
-- KEYS job events   ARGV id
-- -> {place or -1, standing of its queue where it waits, seq, ms from the service's clock to Redis' own, field, value, ...}
-- or nil: no such job
local record = redis.call('HGETALL', KEYS[1])
if #record == 0 then return nil end
local model = redis.call('HGET', KEYS[1], 'model')
local place = redis.call('ZRANK', 'rl:waiting:' .. model, ARGV[1])
local _, shift = clocks()
local batch = redis.call('HGET', KEYS[1], 'lane') == 'batch'
return {place or -1, place and standing(model, batch), last_seq(KEYS[2]), shift, unpack(record)}
""",
    flags="no-writes",
)

PLACE = Script(
    """
-- KEYS job waiting   ARGV id model -> {place or -1, standing of its queue where it waits}, or nil: no such job
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
local place = redis.call('ZRANK', KEYS[2], ARGV[1])
return {place or -1, place and standing(ARGV[2], redis.call('HGET', KEYS[1], 'lane') == 'batch')}
""",
    flags="no-writes",
)

QUEUES = Script(
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

BREATHE = Script(
    """
-- KEYS presence   ARGV name payload ttl-ms -> nothing.  Forgets who has not breathed for a while; past the append-only file.
redis.set_repl(redis.REPL_NONE)
local t = now()
redis.call('HSET', KEYS[1], ARGV[1], t .. ':' .. ARGV[2])
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  local seen = tonumber(string.match(redis.call('HGET', KEYS[1], name), '^%d+'))
  if t - seen > tonumber(ARGV[3]) * 4 then redis.call('HDEL', KEYS[1], name) end
end
"""
)

SLOWED = Script(
    """
-- KEYS slowed   ARGV board slower-and-rests ttl-ms -> nothing.  Past the append-only file, as breaths are.
redis.set_repl(redis.REPL_NONE)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""
)

COUNT = Script(
    """
-- KEYS counts   ARGV field amount ... -> nothing.  Past the append-only file, as all counts.
redis.set_repl(redis.REPL_NONE)
for place = 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[place], ARGV[place + 1]) end
redis.call('PEXPIRE', KEYS[1], 2592000000)
"""
)

LOOK_AT_CLOCK = Script(
    """
-- KEYS clock   ARGV [due-ms shift] -> {now, shift, 1 when the shift was changed here}
-- `due` is what the service's clock should show by that of the caller, who last saw it `shift` behind Redis'. Whoever has not
-- seen it before, or has seen another shift, goes by when somebody last did: another has taken a jump out, or Redis has
-- forgotten that it was. Past the append-only file, unless a jump was taken out.
local raw, shift, seen = clocks()
local due, most = seen, 30000
if ARGV[1] and tonumber(ARGV[2]) == shift then due, most = tonumber(ARGV[1]), 3000 end
local changed = math.abs(raw - shift - due) > most
if changed then
  shift = raw - due
else
  redis.set_repl(redis.REPL_NONE)
end
set_clock(shift, raw - shift)
return {raw - shift, shift, changed and 1 or 0}
"""
)

EXPIRE_AGAIN = Script(
    """
-- KEYS job ... -> nothing.  Sets expiries that lie further away than they were set: the clock went back since.
for _, job in ipairs(KEYS) do
  local ttl = tonumber(redis.call('HGET', job, 'ttl'))
  for _, key in ipairs({job, job .. ':events', job .. ':kept'}) do
    if ttl and redis.call('PTTL', key) > ttl then redis.call('PEXPIRE', key, ttl) end
  end
end
"""
)

ROSTER = Script(
    """
-- KEYS cards presence gates
-- -> {now, cards, presence, waiting, gates}, the last four as field value ...
local cards = redis.call('HGETALL', KEYS[1])
local counted, counts = {}, {}
for i = 1, #cards, 2 do
  local model = string.match(cards[i], '^[^/]*')
  if not counted[model] then
    counted[model] = true
    counts[#counts + 1] = model
    counts[#counts + 1] = redis.call('ZCARD', 'rl:waiting:' .. model)
  end
end
return {now(), cards, redis.call('HGETALL', KEYS[2]), counts, redis.call('HGETALL', KEYS[3])}
""",
    flags="no-writes",
)
