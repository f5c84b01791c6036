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
  held      what else it waited for then, in the words of `tasks/waits_for.py`; not of items of batches whose model was not loaded
  home      where its conversation was in a cache when it was first claimed: new | here | elsewhere | gone
  claims    of each claim that ended before the job did a line, SINCE STARTED ENDED BOARD, a tab and WHY: when it began to wait,
            was claimed and handed back; a tab and the board that has read it follow where one has; as many as fit into 8000 bytes
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

from tasks.lua import Script

ACCEPT = Script(
    """
-- KEYS job events waiting running order calls turns lanes refusal gates kept
-- ARGV id limit rank first-event deadline-ms call model owner what-is-kept owner's-limits field value ...
-- -> {1 accepted or 0 full, waiting, place, standing, how many heard its channel then, allowance}, {-1, why none is accepted},
-- {-2}: this queue is draining, or {-3, limit that the owner has reached, its size, ms until it may try again, allowance}
-- Sent twice with one id it accepts once.
-- What waits behind it takes no place from it: a queue full of batch items has room for a chat.
local function ahead()
  return redis.call('ZCOUNT', KEYS[3], '-inf', string.format('(%.0f', (ARGV[3] + 1) * LANE))
end
local function answer(accepted, heard)
  return {accepted, ahead(), redis.call('ZRANK', KEYS[3], ARGV[1]) or -1, standing(ARGV[7], ARGV[3] == '2'),
    heard, allowance(ARGV[8], ARGV[10])}
end
if redis.call('EXISTS', KEYS[1]) == 1 then return answer(1, 0) end
local refusal = redis.call('GET', KEYS[9])
if refusal then return {-1, refusal} end
local gate = redis.call('HGET', KEYS[10], ARGV[7])
if gate == 'draining' then return {-2} end
local which, size, wait = reached(ARGV[8], ARGV[10])
if which then return {-3, which, size, wait, allowance(ARGV[8], ARGV[10])} end
if ahead() >= tonumber(ARGV[2]) then return answer(0, 0) end
local waiting = redis.call('ZCARD', KEYS[3])
local order = line_up(KEYS[7], KEYS[8], ARGV[3], ARGV[8], redis.call('INCR', KEYS[5]))
keep_clock()
local created = now()
redis.call('HSET', KEYS[1], 'state', 'queued', 'order', string.format('%.0f', order), 'created', created,
  'since', created, 'deadline', created + ARGV[5], 'model', ARGV[7], 'owner', ARGV[8], unpack(ARGV, 11))
if gate == 'paused' then redis.call('HSET', KEYS[1], 'held', 'queue') end
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
return answer(1, redis.call('PUBSUB', 'NUMSUB', KEYS[1] .. ':live')[2])
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

_APPEND = """
local kept = redis.call('HMGET', KEYS[1], 'claim', 'state', 'cancel')
if kept[1] ~= ARGV[1] then return -1 end
if kept[2] ~= 'running' then return kept[2] == ARGV[6] and 0 or -1 end
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
"""

APPEND = Script(
    """
-- KEYS job events running   ARGV claim after seq events pieces [- field value ...]
-- -> 0 written, 1 written and the job is to be cancelled, -1 the claim is not ours any more, -2-N not written: the record
-- ends at N, before the number `after` that is to stand before this append, and may have no hole.
-- Sent twice it writes once: what the record has is not written again. It runs for every token, and so has nothing of an end.
"""
    + _APPEND
    + """
if ARGV[6] then redis.call('HSET', KEYS[1], unpack(ARGV, 7)) end
return kept[3] and 1 or 0
"""
)

END = Script(
    """
-- KEYS job events running   ARGV claim after seq events pieces state end [field value ...]
-- -> as an append. The last one of a job.
"""
    + _APPEND
    + """
redis.call('ZREM', KEYS[3], string.match(KEYS[1], '{(.*)}'))
if ARGV[8] then redis.call('HSET', KEYS[1], unpack(ARGV, 8)) end
finish(KEYS[1], KEYS[2], ARGV[6], ARGV[7])
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
  claims = claims .. table.concat({kept[14], kept[15], now(), kept[16]}, ' ') .. '\\t' .. string.sub(ARGV[11], 1, 200)
    .. (ARGV[14] ~= '' and '\\t' .. ARGV[14] or '') .. '\\n'
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
-- -> {place or -1, standing of its queue where it waits, seq, ms from the service's clock to Redis' own, those there were,
-- field, value, ...}
-- or nil: no such job
local record = redis.call('HGETALL', KEYS[1])
if #record == 0 then return nil end
local model = redis.call('HGET', KEYS[1], 'model')
local place = redis.call('ZRANK', 'rl:waiting:' .. model, ARGV[1])
local _, shift = clocks()
local batch = redis.call('HGET', KEYS[1], 'lane') == 'batch'
local shifts = redis.call('LRANGE', 'rl:clock:shifts', 0, -1)
return {place or -1, place and standing(model, batch), last_seq(KEYS[2]), shift, shifts, unpack(record)}
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
