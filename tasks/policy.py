"""Who is served next: the one place where jobs are ranked. By lane, then by turns of their owners, then by age.

The waiting set's score is all of that in one number, so the first member is the next to serve, and a job's rank is its
position. It is made when a job is accepted and never changes: a job handed back takes its old place again. It is made of
counts and of no time, since the clocks of boards jump.

Turns are start-time fair queueing with one job as the unit. A job takes the turn after its owner's last, but none that is
over: an owner's jobs keep their order and lie a turn apart, and whoever comes newly joins the turn that is on, before the
second of anybody else. So an owner with fifty jobs waiting keeps a newcomer waiting for none of them but the one that runs.

`RULES` is that in Lua, for the scripts; its state is two keys for each model, which go when none of its jobs is left:

  turns   zset   LANE:OWNER -> the owner's last turn; forgotten once that turn is over
  lanes   hash   turn:LANE -> the turn that is on
"""

from __future__ import annotations

from tasks.jobs import Lane

_RANKS = {Lane.INTERACTIVE: 0, Lane.BACKGROUND: 1, Lane.BATCH: 2}

LANE = 10**15
"""From one lane to the next. Scores are exact up to 9 * 10^15."""
TURN = 10**6
"""From one turn to the next; between them jobs lie in the order of their acceptance. The count of that begins anew each
million, which matters once, and only between different owners."""


def rank(lane: Lane) -> int:
    """The lane's place among lanes; lower goes first."""
    return _RANKS[lane]


RULES = f"""
local LANE, TURN = {LANE}, {TURN}
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
"""
