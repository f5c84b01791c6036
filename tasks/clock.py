"""The service's clock: that of Redis, without its jumps. Leases, deadlines and breaths go by it.

Boards boot in 1970 and jump when the network tells them the time; people set clocks. No process may decide by its own, for
they differ. So all times on record are by Redis' clock less a shift (`rl:clock`), and whoever sweeps compares its progress
with a clock of his own that cannot jump. Between a jump and the next look at it the service's clock stands still, as it does
while nobody looks at all: the time for which the service was stopped counts against no deadline. So that a moment is told to
people as the same one ever after, the last shifts are kept with when each began (`rl:clock:shifts`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import redis

from tasks import keys
from tasks.connection import text
from tasks.lua import Script

SLUGGISH = 1.0
"""Seconds after which an answer came too late to tell a jump by."""
SET_SINCE = 1_704_067_200_000
"""Unix milliseconds, the year 2024: a clock that shows less was not set yet, for this is younger."""
AT_ONCE = 500
"""Keys that are looked at in one step, which takes Redis about a millisecond."""


_LOOK = Script(
    """
-- KEYS clock clock_shifts   ARGV [due-ms shift] -> {now, shift, 1 when the shift was changed here}
-- `due` is what the service's clock should show by that of the caller, who last saw it `shift` behind Redis'. Whoever has not
-- seen it before, or has seen another shift, goes by when somebody last did: another has taken a jump out, Redis has forgotten
-- that it was, or the service was stopped and nobody looked. Moments keep the shift of their time then, while a jump that was
-- seen set the clock right, and those since the last stop are told by it. Past the append-only file, unless the shift changes.
local raw, shift, seen = clocks()
local due, most = seen + 1, 30000  -- what is on record of the last moment was before the stop
if ARGV[1] and tonumber(ARGV[2]) == shift then due, most = tonumber(ARGV[1]), 3000 end
local changed = math.abs(raw - shift - due) > most
if changed then
  if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('RPUSH', KEYS[2], string.format('0:%.0f', shift)) end
  shift = raw - due
  local began = due
  if most < 30000 then began = string.match(redis.call('RPOP', KEYS[2]), '^%d+') end
  redis.call('RPUSH', KEYS[2], string.format('%.0f:%.0f', began, shift))
  redis.call('LTRIM', KEYS[2], -100, -1)
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


def since_boot() -> float:
    """Seconds by a clock that never jumps, and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Calendar:
    """What Redis' own clock showed at the moments of the service's."""

    def __init__(self, shift: int, shifts: Sequence[str]) -> None:
        """By the shift of now, and by those that there were with the moment from which each was, the earliest first."""
        parts = (each.partition(":") for each in shifts)
        self._shifts = [(int(since), int(behind)) for since, _, behind in parts] or [(0, shift)]

    def unix(self, moment: int) -> float:
        """Unix seconds of a moment in milliseconds. Of one from before Redis' clock was set, those that it would have shown."""
        for (_, shift), (until, _) in pairwise(self._shifts):
            if moment < until and moment + shift >= SET_SINCE:
                break
        else:
            shift = self._shifts[-1][1]
        return (moment + shift) / 1000


class Clock:
    """What one process has seen of it."""

    def __init__(self, client: redis.Redis, own: Callable[[], float] = since_boot) -> None:
        self._client = client
        self._own = own
        self._before: tuple[float, int, int] | None = None
        """By our own clock, by the service's, and the shift."""

    def look(self) -> int:
        """What it shows, in milliseconds, once a jump is taken out of it. Raises what the client raises."""
        before, asked = self._before, self._own()
        known = [before[1] + round((asked - before[0]) * 1000), before[2]] if before is not None else []
        now, shift, changed = cast("list[int]", _LOOK.run(self._client, [keys.CLOCK, keys.CLOCK_SHIFTS], *known))
        self._before = (asked, now, shift) if self._own() - asked < SLUGGISH else None
        if changed or before is None:
            self._expire_again()
        return now

    def _expire_again(self) -> None:
        """Let no record of an ended job stay for half a century: expiries are moments by Redis' own clock."""
        cursor = 0
        while True:
            cursor, found = cast("tuple[int, list[bytes]]", self._client.scan(cursor, keys.JOBS, AT_ONCE))
            if found:
                EXPIRE_AGAIN.run(self._client, [text(key) for key in found])
            if cursor == 0:
                return
