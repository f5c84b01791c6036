"""Batches: what their clients asked for, how far they are, which items are on their way, and who feeds them.

A batch is fed by one process at a time. Whoever takes it leaves its mark, and each step is for who left the last one: a
process that froze and wakes can write nothing more. Steps are counted, so one that is sent twice is written once, and a Redis
that came back without its last moment is noticed. A step also says how many bytes of its files are good, so whoever goes on
after a crash drops what was written behind them, and looks at the items that were on their way.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any, cast

import msgspec
import redis.asyncio

from tasks import keys
from tasks.connection import unavailable_as_refusal
from tasks.disk import Disk
from tasks.errors import BatchUnknown, NotOnDisk
from tasks.jobs import is_job_id, new_job_id
from tasks.lua import Script

PREFIX = "batch_"

KEPT = 30 * 24 * 3600.0
"""Seconds for which a batch that has ended is remembered."""


class BatchState(StrEnum):
    """Where a batch stands."""

    VALIDATING = "validating"
    FAILED = "failed"
    """Its input is wrong; nothing was run."""
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


OVER = frozenset({BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED})


class BatchOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client asked for, and the ids of the files it will get. Times in unix seconds, lengths of time in seconds."""

    id: str
    owner: str
    endpoint: str
    input_file: str
    output_file: str
    error_file: str
    window: float
    window_said: str
    created: int
    metadata: dict[str, str] | None = None
    output_expires_after: int | None = None


class LineProblem(msgspec.Struct, frozen=True):
    """What is wrong with a line of the input, the first being 1; None is the file as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is. `fed` lines have become jobs, and `offset` bytes of the input were read for it; `written` bytes of
    the output and `refused` bytes of the error file are good. Moments are in unix seconds, by their state."""

    state: BatchState
    total: int = 0
    completed: int = 0
    failed: int = 0
    fed: int = 0
    offset: int = 0
    written: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cancel: bool = False
    left: float = 0.0
    """Seconds until it expires."""
    moments: dict[str, int] = {}
    problems: tuple[LineProblem, ...] = ()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER


class Batch(msgspec.Struct, frozen=True):
    """One batch."""

    order: BatchOrder
    progress: Progress


class Step(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is written of a batch at once."""

    put: dict[str, str | int] = {}
    """Fields of its progress that become this."""
    add: dict[str, int] = {}
    """Fields of its progress that grow by this."""
    begun: dict[str, str] = {}
    """Lines that are on their way from now on: their jobs, and where they begin in the input, with a space between."""
    done: list[str] = []
    """Lines that are not any more: what became of them is in a file."""
    forget: list[str] = []
    """Jobs whose records are of no more use."""
    over: bool = False
    """It has ended."""
    leave: bool = False
    """Somebody else may feed it now."""


_NOTHING = Step()


class FeederReplaced(Exception):
    """Raised when another process feeds the batch now, or Redis has forgotten what this one wrote: it is taken anew, or left."""


_TAKE = Script(
    """
-- KEYS batch   ARGV process/hold lease-ms -> fields of the batch, or nil: it is over, or another process feeds it
-- What a process may still have sent in an earlier hold of its own is none of this one's.
local kept = redis.call('HMGET', KEYS[1], 'state', 'holder', 'lease', 'over')
if not kept[1] or kept[4] then return nil end
local another = kept[2] and string.match(kept[2], '^[^/]*') ~= string.match(ARGV[1], '^[^/]*')
if another and tonumber(kept[3] or 0) > now() then return nil end
redis.call('HSET', KEYS[1], 'holder', ARGV[1])
redis.set_repl(redis.REPL_NONE)
redis.call('HSET', KEYS[1], 'lease', lease_end(ARGV[2]))
return redis.call('HGETALL', KEYS[1])
"""
)
_STEP = Script(
    """
-- KEYS batch items due   ARGV id holder lease-ms kept-ms step number writes
-- -> {is to be cancelled, ms left}, or nil: somebody else feeds it, or Redis came back without the steps before this one.
-- Those that write have consecutive numbers; others have the last one's. Sent twice it writes once.
local held = redis.call('HMGET', KEYS[1], 'holder', 'steps', 'cancel')
if held[1] ~= ARGV[2] then return nil end
local missing = ARGV[6] - (held[2] or 0)
if missing < 0 or missing > (ARGV[7] == '1' and 1 or 0) then return nil end
local step = missing == 1 and cjson.decode(ARGV[5]) or {}
if missing == 1 then redis.call('HSET', KEYS[1], 'steps', ARGV[6]) end
for name, value in pairs(step.put or {}) do
  -- Whoever cancelled it was told so.
  if name ~= 'state' or step.over or not held[3] then redis.call('HSET', KEYS[1], name, value) end
end
for name, value in pairs(step.add or {}) do redis.call('HINCRBY', KEYS[1], name, value) end
for line, job in pairs(step.begun or {}) do redis.call('HSET', KEYS[2], line, job) end
for _, line in ipairs(step.done or {}) do redis.call('HDEL', KEYS[2], line) end
for _, job in ipairs(step.forget or {}) do redis.call('DEL', 'rl:{' .. job .. '}', 'rl:{' .. job .. '}:events') end
if step.over then
  redis.call('HSET', KEYS[1], 'over', 1)
  redis.call('HDEL', KEYS[1], 'holder', 'lease')
  redis.call('ZADD', KEYS[3], now() + ARGV[4], ARGV[1])
end
local kept = redis.call('HMGET', KEYS[1], 'cancel', 'due')
if step.leave then
  redis.call('HDEL', KEYS[1], 'holder', 'lease')
elseif not step.over then
  -- A lease is worth nothing after a restart, and SD cards wear.
  redis.set_repl(redis.REPL_NONE)
  redis.call('HSET', KEYS[1], 'lease', lease_end(ARGV[3]))
end
return {kept[1] and 1 or 0, kept[2] - now()}
"""
)
_CREATE = Script(
    """
-- KEYS batches batch   ARGV id order window-ms -> 1, also when it is sent twice, or 0: there is one of that id
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and 1 or 0
end
keep_clock()
redis.call('HSET', KEYS[2], 'state', 'validating', 'due', now() + ARGV[3])
return 1
""",
    flags="",
)
_CANCEL = Script(
    """
-- KEYS batch   ARGV moment -> 1, or 0: it has ended
if redis.call('HEXISTS', KEYS[1], 'over') == 1 then return 0 end
if redis.call('HSETNX', KEYS[1], 'cancel', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'state', 'cancelling', 'at:cancelling', ARGV[1])
end
return 1
"""
)
_SHOW = Script(
    """
-- KEYS batches batch   ARGV id -> {order, now, field, value, ...} or nil
local order = redis.call('HGET', KEYS[1], ARGV[1])
return order and {order, now(), unpack(redis.call('HGETALL', KEYS[2]))}
"""
)
_UNFINISHED = Script(
    """
-- KEYS batches -> {state, requests, completed, failed of each that has not ended}
local found = {}
for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
  local kept = redis.call('HMGET', 'rl:batch:' .. id, 'state', 'total', 'completed', 'failed', 'over')
  if kept[1] and not kept[5] then
    found[#found + 1] = {kept[1], tonumber(kept[2] or 0), tonumber(kept[3] or 0), tonumber(kept[4] or 0)}
  end
end
return found
""",
    flags="no-writes",
)
_DUE = Script(
    """
-- KEYS due -> ids   They ended long ago.
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now(), 'LIMIT', 0, 100)
"""
)

_orders = msgspec.json.Decoder(BatchOrder)
_problems = msgspec.json.Decoder(tuple[LineProblem, ...])
_NUMBERS = (
    *("total", "completed", "failed", "fed", "offset", "written", "refused"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
)


def is_batch_id(text: str) -> bool:
    """Whether `text` has the form of a batch's id; anything else never reaches a Redis key."""
    return text.startswith(PREFIX) and is_job_id(text.removeprefix(PREFIX))


class BatchBook:
    """All batches by their ids. Its methods raise `QueueUnavailable` while Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, disk: Disk | None = None) -> None:
        self._client = client
        self._disk = disk

    async def create(self, order: BatchOrder, *, again: bool = False) -> bool:
        """Accept a batch; false when there is one of its id. With a disk, it is on that when this returns. Raises
        `NotOnDisk`; what was made by this is cancelled then, unless its client asks for it `again`."""
        with unavailable_as_refusal():
            made = await _CREATE.arun(
                self._client,
                [keys.BATCHES, keys.batch(order.id)],
                *(order.id, msgspec.json.encode(order), int(order.window * 1000)),
            )
        if self._disk is not None:
            try:
                await self._disk.has_all()
            except NotOnDisk as error:
                if again:
                    raise NotOnDisk(error.why, error.retry_after, again=True) from error
                if made:
                    await self.cancel(order.id)
                raise
        return bool(made)

    async def get(self, batch: str) -> Batch:
        """One batch as it stands. Raises `BatchUnknown`."""
        found = None
        if is_batch_id(batch):
            with unavailable_as_refusal():
                found = await _SHOW.arun(self._client, [keys.BATCHES, keys.batch(batch)], batch)
        if found is None:
            raise BatchUnknown(batch)
        order, now, *flat = cast("list[Any]", found)
        return Batch(_orders.decode(order), _progress(_fields(flat), now))

    async def is_over(self, batch: str) -> bool:
        """Whether it has ended, as one has that is not known any more."""
        try:
            return (await self.get(batch)).progress.over
        except BatchUnknown:
            return True

    async def every(self) -> list[BatchOrder]:
        """What was asked for in each, the oldest first."""
        with unavailable_as_refusal():
            found = cast("list[bytes]", await cast(Any, self._client.hvals(keys.BATCHES)))
        return sorted(map(_orders.decode, found), key=lambda order: (order.created, order.id))

    async def unfinished(self) -> list[Progress]:
        """How far those are that have not ended: their states and the counts of their requests."""
        with unavailable_as_refusal():
            found = cast("list[list[Any]]", await _UNFINISHED.arun(self._client, [keys.BATCHES]))
        return [
            Progress(state=BatchState(state.decode()), total=total, completed=completed, failed=failed)
            for state, total, completed, failed in found
        ]

    async def cancel(self, batch: str) -> bool:
        """Ask for its end, which whoever feeds it brings about; false when it has ended already."""
        with unavailable_as_refusal():
            return bool(await _CANCEL.arun(self._client, [keys.batch(batch)], int(time.time())))

    async def due(self) -> list[str]:
        """The ids of those that ended so long ago that they are to be forgotten."""
        with unavailable_as_refusal():
            found = cast("list[bytes]", await _DUE.arun(self._client, [keys.BATCHES_DUE]))
        return [each.decode() for each in found]

    async def remove(self, batch: str) -> None:
        """Forget one."""
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hdel(keys.BATCHES, batch)
                pipe.zrem(keys.BATCHES_DUE, batch)
                pipe.delete(keys.batch(batch), keys.batch_items(batch))
                await pipe.execute()

    async def take(self, batch: str, holder: str, lease: float) -> Hold | None:
        """Feed this batch from now on, for `lease` seconds at a time; None when it is over, or fed by another process than
        `holder`."""
        holder = f"{holder}/{new_job_id()}"
        with unavailable_as_refusal():
            flat = await _TAKE.arun(self._client, [keys.batch(batch)], holder, int(lease * 1000))
            if flat is None:
                return None
            items = cast("dict[bytes, bytes]", await cast(Any, self._client.hgetall(keys.batch_items(batch))))
        fields = _fields(cast("list[bytes]", flat))
        return Hold(
            self._client,
            batch,
            holder,
            lease,
            _progress(fields, 0),
            int(fields.get("steps", b"0")),
            {int(line): _item(value) for line, value in items.items()},
        )


class Hold:
    """The feeding of one batch by one process. `items` are the lines that are on their way: their jobs, and where they begin."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        batch: str,
        holder: str,
        lease: float,
        progress: Progress,
        steps: int,
        items: dict[int, tuple[str, int]],
    ) -> None:
        self.progress = progress
        self.items = items
        self._client = client
        self._batch = batch
        self._holder = holder
        self._lease = lease
        self._steps = steps

    async def step(self, step: Step) -> tuple[bool, float]:
        """Write this, and hold the batch for another lease: whether it is to be cancelled, and in how many seconds it
        expires. Raises `FeederReplaced` and `QueueUnavailable`; whether it was written is unknown after the second."""
        writes = step != _NOTHING
        number = self._steps + writes
        with unavailable_as_refusal():
            reply = await _STEP.arun(
                self._client,
                [keys.batch(self._batch), keys.batch_items(self._batch), keys.BATCHES_DUE],
                *(self._batch, self._holder, int(self._lease * 1000), int(KEPT * 1000), msgspec.json.encode(step)),
                *(number, int(writes)),
            )
        if reply is None:
            raise FeederReplaced(f"{self._batch} is not as this process left it: another one feeds it, or Redis forgot")
        self._steps = number
        cancel, left = cast("list[int]", reply)
        return bool(cancel), left / 1000


def _item(value: bytes) -> tuple[str, int]:
    job, start = value.split()
    return job.decode(), int(start)


def _fields(flat: list[bytes]) -> dict[str, bytes]:
    return {flat[place].decode(): flat[place + 1] for place in range(0, len(flat), 2)}


def _progress(fields: dict[str, bytes], now: int) -> Progress:
    return Progress(
        state=BatchState(fields["state"].decode()),
        cancel="cancel" in fields,
        left=(int(float(fields["due"])) - now) / 1000,
        moments={name[3:]: int(value) for name, value in fields.items() if name.startswith("at:")},
        problems=_problems.decode(fields["problems"]) if "problems" in fields else (),
        **{name: int(fields[name]) for name in _NUMBERS if name in fields},
    )
