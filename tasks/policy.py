"""Who is served next: the one place where jobs are ranked. By lane, then by turns of their owners, then by age.

The waiting set's score is all of that in one number, so the first member is the next to serve, and a job's rank is its
position. It is made when a job is accepted, and a job handed back takes its old place again. It is made of counts and of no
time, since the clocks of boards jump.

Turns are start-time fair queueing with one job as the unit. A job takes the turn after its owner's last, but none that is
over: an owner's jobs keep their order and lie a turn apart, and whoever comes newly joins the turn that is on, before the
second of anybody else. So an owner with fifty jobs waiting keeps a newcomer waiting for none of them but the one that runs.
A job that ends before any worker took it costs its owner no turn: those behind it move up by one, and so does what comes next.

A chat does not wait for a job of a lower lane either. That job is paused: its worker hands it back, and it is gone on with
when no chat has run for as long as its prefill took, because that is what the next pause would cost again. A lane that comes
to nothing in this way ages: when none of its jobs has ended for some minutes, and the next one has waited as long, that one
goes before everything else, and is not paused. So a chat waits for one such job in that time at most, and every lane ends.

Of the batch items of one owner, those go next to each other that begin with the same words as what the worker served last: the
engine has those in its cache. A worker looks for them among the next `ALIKE` items, and nobody else loses a turn by it. Nor
is an item passed over more than `ALIKE` times: a long batch does not keep a short one of its owner's waiting to its end.

A chat that goes on where another ended is given to the board that served that one, whose engine still has it in its cache: other
boards leave it for `AT_HOME` ms at most, and only while that board has nothing to do and breathes. So it costs no wait where
one could be served sooner, and next to none where a board has died. An engine that parks what others displace has the last
`PARKED` chats. Whoever leaves a job sends its call on, once; those who
wait for calls are called in turn, so that board's turn comes.

A board that heat slows down rests between the items of batches, for three times as long as the last one took: its workers
take none meanwhile, and leave them to boards that are cool, but chats and background jobs at once. A starved lane has its turn
there, too.

An engine may answer several prompts by one run. A worker that has taken a batch item then takes more of its kin (requests that
are answered in the same way), from among the next `ALIKE` items, unless a chat waits. If the run ends in a crash, nobody knows by
which of them: none counts it as a failure, and each runs alone from then on.

`RULES` is that in Lua, for the scripts; its state is two keys for each model, which go when none of its jobs is left, and one
that goes by itself:

  turns   zset   LANE:OWNER -> the owner's last turn; forgotten once that turn is over
  last    hash   board -> what it served last, as a digest of the conversation; behind it what its engine has parked
  lanes   hash   turn:LANE -> the turn that is on; ended:LANE -> when a job of the lane last ended that had run

and these fields of a record:

  since waited   when it last began to wait, and how long it waited before that
  prefill        ms of its longest prefill before a pause
  paused         1 while it waits because of a pause
  pausing        1 once its worker was told to pause it
  prefix         what its prompt begins with, as a digest
  passed         how often another item went before it for that
  kin            which items it may share a run with, as a digest; nothing: none
  together       1 while it shares a run
  alone          1 once such a run ended in a crash
  talk follows   digests of its conversation, and of the part of it that another request ended with
  goes_to        the board that reads it before the one that has it in hand lets go of it
  left           the boards that left it to another one
  through        1 while it runs because its lane was starved, and is not to be paused

Times are milliseconds by Redis' clock. Where it jumps, a wait is taken for a long one in either direction: something runs
too early then, once, and nothing waits for years.
"""

from __future__ import annotations

from typing import NamedTuple

from tasks.jobs import Lane

_RANKS = {Lane.INTERACTIVE: 0, Lane.BACKGROUND: 1, Lane.BATCH: 2}

LANE = 10**15
"""From one lane to the next. Scores are exact up to 9 * 10^15."""
TURN = 10**6
"""From one turn to the next; between them jobs lie in the order of their acceptance. The count of that begins anew each
million, which matters once, and only between different owners."""


MOST_QUIET = 60.0
"""Seconds without a chat after which any paused job goes on."""
ALIKE = 64
"""Batch items among which a worker looks for one like the last, and how often one may be passed over so."""


AT_HOME = 300
"""Milliseconds for which a chat waits for the board that has its conversation in its cache."""
PARKED = 8
"""Conversations that an engine which parks them is taken to have."""


class Ageing(NamedTuple):
    """Seconds after which a lane that comes to nothing is starved."""

    background: float = 300.0
    batch: float = 3600.0


def rank(lane: Lane) -> int:
    """The lane's place among lanes; lower goes first."""
    return _RANKS[lane]


RULES = f"""
local LANE, TURN, MOST_QUIET, ALIKE, AT_HOME = {LANE}, {TURN}, {MOST_QUIET * 1000:.0f}, {ALIKE}, {AT_HOME}
local PARKED = {PARKED}
-- The score of one more job of an owner, the `count`-th that was accepted.
local function line_up(turns, lanes, rank, owner, count)
  local turn = tonumber(redis.call('HGET', lanes, 'turn:' .. rank) or rank * LANE)
  local last = redis.call('ZSCORE', turns, rank .. ':' .. owner)
  if last then turn = math.max(turn, last + TURN) end
  redis.call('ZADD', turns, turn, rank .. ':' .. owner)
  return turn + count % TURN
end
-- A job is taken to be served: its turn is on, and those before it are over.
local function take_turn(turns, lanes, score)
  local rank, turn = math.floor(score / LANE), score - score % TURN
  if turn <= tonumber(redis.call('HGET', lanes, 'turn:' .. rank) or -1) then return end
  redis.call('HSET', lanes, 'turn:' .. rank, turn)
  redis.call('ZREMRANGEBYSCORE', turns, rank * LANE, string.format('(%.0f', turn))
end
-- A job ended that was never taken, and is off the waiting set. Those of its owner behind it lie a turn apart, none of them
-- taken either, up to the owner's last turn.
local function give_back(waiting, turns, lanes, owner, score)
  local rank = math.floor(score / LANE)
  local behind = redis.call('ZRANGEBYSCORE', waiting, string.format('(%.0f', score), string.format('(%.0f', (rank + 1) * LANE))
  for _, id in ipairs(behind) do
    local job = 'rl:{{' .. id .. '}}'
    local kept = redis.call('HMGET', job, 'owner', 'order')
    if kept[1] == owner then
      local order = string.format('%.0f', kept[2] - TURN)
      redis.call('HSET', job, 'order', order)
      redis.call('ZADD', waiting, order, id)
    end
  end
  local name = rank .. ':' .. owner
  local last = redis.call('ZSCORE', turns, name)
  -- It is forgotten where others were taken past this job: with those of their kin, or because it was left to its own board.
  if not last then return end
  last = last - TURN
  if last < tonumber(redis.call('HGET', lanes, 'turn:' .. rank) or rank * LANE) then
    redis.call('ZREM', turns, name)
  else
    redis.call('ZADD', turns, last, name)
  end
end
-- Milliseconds since a job of the lane ended that had run; nil when none has.
local function since_end(lanes, rank, t)
  local ended = redis.call('HGET', lanes, 'ended:' .. rank)
  return ended and math.abs(t - ended)
end
-- The first job of a lane, if it has waited for `limit` ms and none of its lane has ended for as long.
local function starved(waiting, lanes, t, rank, limit)
  local last = string.format('(%.0f', (rank + 1) * LANE)
  local id = redis.call('ZRANGEBYSCORE', waiting, rank * LANE, last, 'LIMIT', 0, 1)[1]
  local kept = id and redis.call('HMGET', 'rl:{{' .. id .. '}}', 'since', 'waited')
  if not kept or not kept[1] or (kept[2] or 0) + math.abs(t - kept[1]) <= limit then return end
  local ended = since_end(lanes, rank, t)
  return (not ended or ended > limit) and id
end
-- For how many ms more this job is another board's to take; nothing: anybody's.
local function is_of_another(id, model, board, t)
  local kept = redis.call('HMGET', 'rl:{{' .. id .. '}}', 'follows', 'since', 'fence', 'goes_to')
  local home = kept[4]
  if not home and (not kept[1] or kept[3]) then return end
  local left = AT_HOME - math.abs(t - kept[2])
  if left <= 0 then return end
  if home == board then return end
  local last = home and {{}} or redis.call('HGETALL', 'rl:last:' .. model)
  for place = 1, #last, 2 do
    if string.find(last[place + 1], kept[1], 1, true) then
      if last[place] == board then return end
      home = last[place]
    end
  end
  local breath = home and redis.call('HGET', 'rl:presence', model .. '@' .. home)
  if not breath or t - string.match(breath, '^%d+') > 10000 then return end
  for _, other in ipairs(redis.call('ZRANGE', 'rl:running:' .. model, 0, -1)) do
    if redis.call('HGET', 'rl:{{' .. other .. '}}', 'board') == home then return end
  end
  return left
end
-- Where an engine has what this job goes on with in its cache, as seen from a board.
local function where_kept(model, board, follows)
  if not follows then return 'new' end
  local last = redis.call('HGETALL', 'rl:last:' .. model)
  local found = 'gone'
  for place = 1, #last, 2 do
    local at = string.find(last[place + 1], follows, 1, true)
    if at then
      if last[place] ~= board then
        found = 'elsewhere'
      elseif at == 1 then
        return 'here'
      end
    end
  end
  return found
end
-- What the board serves now is what its engine will have in its cache; one that parks has the chats before it as well.
local function note_last(model, board, talk, follows, chat, parks)
  local key = 'rl:last:' .. model
  if parks then
    local had = redis.call('HGET', key, board) or ''
    if talk and chat then
      local known = {{talk}}
      for one in string.gmatch(had, '%x+') do
        if one ~= talk and one ~= follows and #known < PARKED then table.insert(known, one) end
      end
      talk = table.concat(known, ' ')
    else
      -- A word that nobody goes on with stands first.
      talk = '- ' .. string.gsub(had, '^%- ', '')
    end
  end
  -- Past the append-only file: it is worth nothing after a restart, and SD cards wear.
  redis.set_repl(redis.REPL_NONE)
  if talk then redis.call('HSET', key, board, talk) else redis.call('HDEL', key, board) end
  redis.call('PEXPIRE', key, 3600000)
  redis.set_repl(redis.REPL_ALL)
end
-- The job to serve at the time t, and whether it is to run through; else nothing, and, when all that wait are paused or left
-- to others, after how many ms one may go on, and the first that is left to another board. For `rest` ms no batch item is taken.
local function choose(waiting, lanes, t, background, batch, model, board, rest)
  local id = starved(waiting, lanes, t, 1, tonumber(background)) or starved(waiting, lanes, t, 2, tonumber(batch))
  if id then return id, true end
  local quiet = since_end(lanes, 0, t)
  local place, soonest, left_to_another = 0, nil, nil
  while true do
    id = redis.call('ZRANGE', waiting, place, place)[1]
    if not id then return nil, nil, soonest, left_to_another end
    local kept = redis.call('HMGET', 'rl:{{' .. id .. '}}', 'paused', 'prefill', 'order')
    if rest > 0 and tonumber(kept[3] or 0) >= 2 * LANE then  -- and so is all that waits behind it
      return nil, nil, math.min(soonest or rest, rest), left_to_another or id
    end
    local left = kept[1] and quiet and math.min(kept[2], MOST_QUIET) - quiet or 0
    local at_home = left <= 0 and is_of_another(id, model, board, t)
    if left <= 0 and not at_home then return id, false end
    if at_home then left_to_another = left_to_another or id end
    left = at_home or left
    soonest = math.min(soonest or left, left)
    place = place + 1
  end
end
-- Instead of this batch item one of the same owner that begins like what the worker served last, if there is one.
local function like_the_last(waiting, id, prefix)
  local kept = redis.call('HMGET', 'rl:{{' .. id .. '}}', 'order', 'owner', 'prefix', 'passed')
  if prefix == '' or tonumber(kept[1] or 0) < 2 * LANE or kept[3] == prefix then return id end
  if tonumber(kept[4] or 0) >= ALIKE then return id end
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', waiting, 2 * LANE, '+inf', 'LIMIT', 0, ALIKE)) do
    local its = redis.call('HMGET', 'rl:{{' .. other .. '}}', 'owner', 'prefix', 'paused')
    if its[1] == kept[2] and its[2] == prefix and not its[3] then
      -- Past the append-only file: it is worth little after a restart, and SD cards wear.
      redis.set_repl(redis.REPL_NONE)
      redis.call('HINCRBY', 'rl:{{' .. id .. '}}', 'passed', 1)
      redis.set_repl(redis.REPL_ALL)
      return other
    end
  end
  return id
end
-- A batch item that may share a run with those of this kin, if none of them keeps a chat waiting.
local function of_kin(waiting, lanes, t, kin)
  if redis.call('ZCOUNT', waiting, '-inf', string.format('(%.0f', LANE)) > 0 then return end
  local quiet = since_end(lanes, 0, t)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', waiting, 2 * LANE, '+inf', 'LIMIT', 0, ALIKE)) do
    local kept = redis.call('HMGET', 'rl:{{' .. id .. '}}', 'kin', 'alone', 'paused', 'prefill')
    local left = kept[3] and quiet and math.min(kept[4], MOST_QUIET) - quiet or 0
    if kept[1] == kin and not kept[2] and left <= 0 then return id end
  end
end
-- Whether an administrator lets none of these jobs begin.
local function queue_paused(waiting)
  return redis.call('HGET', 'rl:gates', string.match(waiting, '^rl:waiting:(.*)$')) == 'paused'
end
-- Whether this running job is to be paused, if it `can` be: a chat waits for which no other one is being paused already.
local function must_pause(waiting, running, id, can)
  local job = 'rl:{{' .. id .. '}}'
  local kept = redis.call('HMGET', job, 'order', 'through')
  if tonumber(kept[1]) < LANE then return false end
  if queue_paused(waiting) then can = false end
  local chats = can and not kept[2] and redis.call('ZCOUNT', waiting, '-inf', string.format('(%.0f', LANE)) or 0
  for _, other in ipairs(redis.call('ZRANGE', running, 0, -1)) do
    if other ~= id and redis.call('HEXISTS', 'rl:{{' .. other .. '}}', 'pausing') == 1 then chats = chats - 1 end
  end
  if chats < 1 then
    redis.call('HDEL', job, 'pausing')
    return false
  end
  redis.call('HSET', job, 'pausing', 1)
  return true
end
"""
