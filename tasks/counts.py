"""What became of jobs, counted for the whole service where each of them ends, and so once, whichever processes had to do with it.

Kept in one hash, past the append-only file: SD cards wear, and who reads counters knows that they may begin anew. They are
carried over a stop in order (`tasks/carried.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from tasks.jobs import Lane

WAIT = (100, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000)
"""Upper bounds, in milliseconds, of how long jobs waited for a worker."""
FIRST = (100, 250, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000)
"""The same of the time from a job's acceptance to its first token."""
TOKEN = (5, 10, 20, 35, 50, 75, 100, 150, 250, 500, 1_000)
"""The same of the time for one token of an answer, the mean of each job."""

BOUNDS: Mapping[str, tuple[int, ...]] = {"wait": WAIT, "first": FIRST, "token": TOKEN}


def _lua(bounds: tuple[int, ...]) -> str:
    return "{" + ", ".join(map(str, bounds)) + "}"


RULES = f"""
local BOUNDS = {{{", ".join(f"{name} = {_lua(bounds)}" for name, bounds in BOUNDS.items())}}}
-- A job has ended with these events. What cannot be read is not counted: it must not keep the job from ending.
local function count_end(job, model, lane, claims, payload)
  local readable, wire = pcall(cmsgpack.unpack, payload)
  if not readable or type(wire) ~= 'table' or type(wire[2]) ~= 'table' then return end
  local last = wire[2][#wire[2]]
  local kept = redis.call('HMGET', job, 'failures', 'pauses', 'again', 'home', 'claims')
  redis.set_repl(redis.REPL_NONE)
  local function add(name, amount, extra)
    amount = math.floor(tonumber(amount or 0) + 0.5)
    if amount <= 0 then return end
    redis.call('HINCRBY', 'rl:counts', table.concat({{name, model, lane or 'interactive', extra}}, ' '), amount)
  end
  local function observe(name, ms)
    local bound = 'inf'
    for _, each in ipairs(BOUNDS[name]) do
      if ms <= each then
        bound = each
        break
      end
    end
    add(name, 1, bound)
    add(name .. '_us', ms * 1000)
  end
  add('jobs', 1, last[2])
  add('crashes', kept[1])
  add('pauses', kept[2])
  add('again', kept[3])
  if last[1] == 'finished' and claims then
    local usage, timings = last[3], last[4]
    local whys = {{here = usage[3] * 2 < usage[1] and 'changed' or 'continued', elsewhere = 'moved', gone = 'evicted'}}
    -- What was parked was there after all.
    if (usage[6] or 0) > 0 then whys = {{here = 'continued', elsewhere = 'continued', gone = 'continued'}} end
    -- Of a job that was interrupted nobody knows for which attempt that holds, and its first token came long ago.
    if not kept[5] then add('read', usage[1] - usage[3], whys[kept[4]] or 'new') end
    add('prompt', usage[1])
    add('completion', usage[2])
    add('cached', usage[3])
    add('parked', usage[6])
    observe('wait', timings[1])
    if usage[2] > 0 then
      if not kept[5] then observe('first', timings[1] + timings[2] + timings[3]) end
      observe('token', timings[4] / usage[2])
    end
  end
  redis.call('PEXPIRE', 'rl:counts', 2592000000)
  redis.set_repl(redis.REPL_ALL)
end
"""


MODEL_EVENTS = ("loads", "unloads")
"""Names of what is counted of models; the others are of jobs (`tasks/model_events.py`)."""


class Histogram(NamedTuple):
    """Times that were measured: how many were within each bound (the last one is infinity), and their sum in seconds."""

    within: tuple[int, ...]
    seconds: float


class Counts:
    """All that was counted, by model and lane. Models that are gone are among them until nothing was counted for 30 days."""

    def __init__(self, fields: Mapping[str, int]) -> None:
        self._plain: dict[str, dict[tuple[str, Lane], int]] = defaultdict(dict)
        self._split: dict[str, dict[tuple[str, Lane], dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
        self._models: dict[str, dict[tuple[str, ...], int]] = defaultdict(dict)
        for field, count in fields.items():
            name, model, *rest = field.split(" ")
            if name in MODEL_EVENTS:
                self._models[name][model, *rest] = count
                continue
            lane, *extra = rest
            if extra:
                self._split[name][model, Lane(lane)][extra[0]] = count
            else:
                self._plain[name][model, Lane(lane)] = count

    def total(self, name: str) -> Mapping[tuple[str, Lane], int]:
        """`prompt`, `completion`, `cached`, `parked` and `again` are tokens; `crashes` and `pauses` happened to jobs."""
        return self._plain[name]

    def ends(self) -> Mapping[tuple[str, Lane], Mapping[str, int]]:
        """How jobs ended: by the reasons they finished for, and the codes they failed with."""
        return self._split["jobs"]

    def read(self) -> Mapping[tuple[str, Lane], Mapping[str, int]]:
        """Tokens of prompts that were read, by why they were not in the cache: `new`, `continued` (what is new in a
        conversation that was there), `changed` (less than half of the prompt was there, though its conversation was the
        last), `moved` (another board has it), `evicted` (others were served since)."""
        return self._split["read"]

    def of_models(self, name: str) -> Mapping[tuple[str, ...], int]:
        """`loads` by model, `unloads` by model and reason."""
        return self._models[name]

    def histogram(self, name: str) -> Mapping[tuple[str, Lane], Histogram]:
        """`wait`, `first` or `token`."""
        found = {}
        for key, counts in self._split[name].items():
            seen, within = 0, []
            for bound in (*map(str, BOUNDS[name]), "inf"):
                seen += counts.get(bound, 0)
                within.append(seen)
            found[key] = Histogram(tuple(within), self._plain[name + "_us"].get(key, 0) / 1_000_000)
        return found
