"""What workers and boards say of themselves with every breath, by which others know that they are alive."""

from __future__ import annotations

import msgspec
import redis
import redis.asyncio

from tasks import keys
from tasks.lua import Script

BREATH = 2.0
"""Seconds between two breaths of a worker or board."""
ALIVE = 7.0
"""Seconds without a breath after which it counts as gone."""


_BREATHE = Script(
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


class Machine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a board tells of the machine it is. None is what the kernel does not tell."""

    soc: str | None = None
    name: str | None = None
    """The maker's."""
    driver: str | None = None
    """The version of the NPU's."""
    npu_load: tuple[int, ...] | None = None
    """Percent of the last second that each core of the NPU was busy."""
    npu_hertz: int | None = None
    npu_highest: int | None = None
    """The clock of the NPU, in hertz: now, and the fastest it can be set to."""
    temperature: float | None = None
    """Degrees Celsius of the hottest sensor."""
    limit: float | None = None
    """Degrees Celsius that the kernel holds the board to; the lowest, where sensors have limits of their own."""
    hot: bool | None = None
    """Heat slows the board down, or did a moment ago."""
    throttled: tuple[str, ...] | None = None
    """What the kernel slows down because of heat, by its names for that."""
    memory: int = 0
    memory_available: int = 0
    """Bytes."""
    swapped: int | None = None
    """Bytes that went to swap and back since the machine started."""


class Runtime(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a board tells of the NPU's runtime."""

    version: str = ""
    """Of the release in use; empty where there is none that can be used."""
    installed: tuple[str, ...] = ()
    """The releases it may be changed to, the newest first."""
    unusable: dict[str, str] = {}
    """Releases of which only files are there that are no library for it, and why, as a clause."""


class Resident(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a board tells of a model that has a worker on it."""

    memory: int = 0
    """Bytes it was estimated at."""
    idle: float | None = None
    """For how many seconds it has had nothing to do; None while it has, or is not loaded yet."""
    pinned: bool = False
    """It was asked to stay for ever."""


class Presence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One breath of a worker (with its model) or of a board (without)."""

    name: str
    board: str
    model: str | None = None
    state: str = ""
    """Of a worker: `idle` (the model is not loaded), `loading`, `loaded`, `busy`."""
    prefill_tps: float | None = None
    decode_tps: float | None = None
    """Tokens a worker has lately read and said per second; None before it has."""
    parked: int = 0
    """Bytes of memory in which a worker keeps what was displaced from its engine's cache."""
    answered: int | None = None
    """Calls to serve that a worker has answered; none while it answers one."""
    tries: int = 0
    """How often a worker's process has begun to load its model."""
    problem: str = ""
    """Why it could not, the last time; empty once it could."""
    loaded_for: float | None = None
    """For how many seconds a worker has had its model loaded; None while it has not."""
    refused: dict[str, str] = {}
    """Of a board: what it would call a model whose files cannot be used, and why, for those who ask for it all the same."""
    unusable: dict[str, tuple[str, ...]] = {}
    """Of a board: the ids of those models, each with its other names."""
    stays: dict[str, float] = {}
    """Of a board: for how many seconds a loaded model will stay if nobody asks for it. Those that stay for ever are left out."""
    residents: dict[str, Resident] = {}
    """Of a board: the models that have a worker there."""
    budget: int = 0
    """Of a board: bytes of memory that its models may have together; 0 where it does not tell."""
    room: int = 0
    """Of a board: bytes of that which one more could have now."""
    runtime: Runtime | None = None
    """Of a board; None where it needs none."""
    started: float = 0.0
    """Unix seconds by its own clock; for people only."""
    version: str = ""
    """Of a board: the release of this project that it runs."""
    machine: Machine | None = None
    """Of a board."""
    drained: bool = False
    """Of a board: it is to serve nothing, until it is told otherwise."""
    no_room: dict[str, str] = {}
    """Of a board: models that jobs wait for and that fit once others can be unloaded, each with a sentence that names those."""


def unusable(breath: Presence) -> list[tuple[str, tuple[str, ...], str]]:
    """The models of a board whose files cannot be used: the id of each, its other names, and why."""
    return [(name, names, breath.refused[name]) for name, names in breath.unusable.items() if name in breath.refused]


def breathe(client: redis.Redis, presence: Presence) -> None:
    """Say that a worker or board is alive. Never touches the append-only file."""
    _BREATHE.run(client, [keys.PRESENCE], presence.name, msgspec.json.encode(presence), int(ALIVE * 1000))


async def breathe_async(client: redis.asyncio.Redis, reader: str) -> None:
    """Say that a reader is alive, likewise."""
    await _BREATHE.arun(client, [keys.PRESENCE], reader, b"", int(ALIVE * 1000))


def leave(client: redis.Redis, name: str) -> None:
    """Say that a worker or board is gone, instead of letting others find out."""
    client.hdel(keys.PRESENCE, name)


_decoder = msgspec.json.Decoder(Presence)


def read_breath(kept: bytes) -> Presence:
    """What a breath said, as it is kept: behind the time it was taken. Raises `msgspec.DecodeError`."""
    return _decoder.decode(kept.partition(b":")[2])
