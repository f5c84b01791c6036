"""API keys that were made for people and programs, kept in Redis as digests, so that every API process obeys them.

A key is shown once, when it is made. What is kept of it can neither be turned back nor be used as one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import cast

import msgspec
import redis
import redis.asyncio

from tasks import keys
from tasks.connection import UNREACHABLE, connect, text, unavailable_as_refusal
from tasks.errors import QueueUnavailable
from tasks.limits import Limits
from tasks.lua import Script
from tasks.readings import Readings

log = logging.getLogger("rockchipllama.keys")

API_KEY_VERSION = 1
FRESH = 2.0
"""Seconds for which an API process relies on what it last read: after that long at most, a revoked key opens nothing."""
PATIENCE = 1.0
"""Seconds after which a Redis that has not said which keys there are counts as away: the request has more to ask of it."""
LONGEST_NAME = 60
ID_DIGITS = 12
_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


class Scope(StrEnum):
    """What a key allows."""

    INFERENCE = "inference"
    """To ask models, and to look at jobs, models and queues."""
    BATCH = "batch"
    """To submit files and batches, and to collect their results."""
    ADMIN = "admin"
    """To change what the service does for everybody: pause a queue, cancel others' jobs."""


EVERY_SCOPE = frozenset(Scope)


class KeyRefused(Exception):
    """Raised when a key cannot be made as asked, or when there is none of that name; the message says why. `usage` tells whether
    it was asked for wrongly, and no other key stands against it."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        self.usage = usage
        super().__init__(message)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key as it is kept. `id` is the beginning of its digest; `created` is in Unix seconds by the maker's clock."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created: float
    limits: Limits | None = None
    """How much it may ask for; None is without limits."""
    version: int = API_KEY_VERSION


_decoder = msgspec.json.Decoder(ApiKey)

_ADD = Script(
    """
-- KEYS api_keys   ARGV digest key name -> 1, also when it is sent twice, or 0: there is another of that name by now
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 1 end
for _, kept in ipairs(redis.call('HVALS', KEYS[1])) do
  local read, other = pcall(cjson.decode, kept)
  if read and type(other) == 'table' and other.name == ARGV[3] then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
""",
    flags="",
)
_REPLACE = Script("""
-- KEYS api_keys   ARGV digest key -> 1 replaced, 0 there is none of that digest any more: who was revoked stays so
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
""")


def digest_of(key: bytes) -> str:
    """What is kept of a key. It is random and long, so no salt and no slow digest is needed."""
    return hashlib.sha256(key).hexdigest()


def create(client: redis.Redis, name: str, scopes: Iterable[Scope], limits: Limits | None = None) -> tuple[ApiKey, str]:
    """Make a key, known to every API process within `FRESH` seconds; what is kept of it, and the key itself.

    Raises `KeyRefused` when the name cannot be used or is another key's.
    """
    digest, key, plain = _new(name, scopes, limits, listing(client))
    if not _ADD.run(client, [keys.API_KEYS], digest, msgspec.json.encode(key), name):
        raise _taken(name)
    return key, plain


def _new(name: str, scopes: Iterable[Scope], limits: Limits | None, kept: Iterable[ApiKey]) -> tuple[str, ApiKey, str]:
    allowed = frozenset(scopes)
    if not allowed:
        raise KeyRefused(f"A key needs at least one scope: {', '.join(Scope)}.", usage=True)
    if not name.isprintable() or not 0 < len(name.strip()) <= LONGEST_NAME:
        raise KeyRefused(f"A key's name has 1 to {LONGEST_NAME} printable characters.", usage=True)
    if _ID.fullmatch(name):
        raise KeyRefused(
            f"'{name}' looks like the id of a key, by which it is found too. Choose another name.", usage=True
        )
    if any(other.name == name for other in kept):
        raise _taken(name)
    plain = "rl-" + secrets.token_urlsafe(32)
    digest = digest_of(plain.encode())
    return (
        digest,
        ApiKey(id=digest[:ID_DIGITS], name=name, scopes=allowed, created=time.time(), limits=limits),
        plain,
    )


def _taken(name: str) -> KeyRefused:
    return KeyRefused(f"There is a key named '{name}' already. Revoke it first, or choose another name.")


def listing(client: redis.Redis) -> list[ApiKey]:
    """Every key, oldest first."""
    return sorted(_all(client).values(), key=lambda key: key.created)


def _all(client: redis.Redis) -> dict[str, ApiKey]:
    return _read(cast("dict[bytes, bytes]", client.hgetall(keys.API_KEYS)))


def revoke(client: redis.Redis, name: str) -> ApiKey:
    """Make a key useless within `FRESH` seconds; by its id or its name. Raises `KeyRefused` when there is none."""
    digest, key = _find(_all(client), name)
    client.hdel(keys.API_KEYS, digest)
    return key


def limit(client: redis.Redis, name: str, limits: Limits | None) -> ApiKey:
    """Let a key ask for so much from now on, within `FRESH` seconds; by its id or its name. Raises `KeyRefused` when there is
    none."""
    digest, key = _find(_all(client), name)
    key = msgspec.structs.replace(key, limits=limits)
    if not _REPLACE.run(client, [keys.API_KEYS], digest, msgspec.json.encode(key)):
        raise KeyRefused(f"The API key '{name}' has just been revoked.")
    return key


def _find(found: Mapping[str, ApiKey], name: str) -> tuple[str, ApiKey]:
    for digest, key in found.items():
        if name in (key.id, key.name):
            return digest, key
    known = ", ".join(sorted(key.name for key in found.values())) or "none"
    raise KeyRefused(f"There is no API key '{name}'. There are: {known}.")


def were_made(url: str) -> bool:
    """Whether there is a key in the Redis at `url`; false as well while that cannot be read."""
    client = connect(url)
    try:
        return bool(client.exists(keys.API_KEYS))
    except UNREACHABLE:
        return False
    finally:
        client.close()


class ApiKeys:
    """The keys as one API process knows them: read when somebody asks and what is known is older than `FRESH`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._known: dict[str, ApiKey] | None = None
        self._readings = Readings()
        self._read_at = 0.0

    async def known(self) -> dict[str, ApiKey]:
        """Every key by its digest. While Redis is away, what was last read; raises `QueueUnavailable` if nothing was."""
        if self._known is None:
            return await self._look()
        if time.monotonic() - self._read_at > FRESH:
            with suppress(QueueUnavailable, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    return await self._look()
        return self._known

    async def create(self, name: str, scopes: Iterable[Scope], limits: Limits | None = None) -> tuple[ApiKey, str]:
        """Make a key; what is kept of it, and the key itself. Raises `KeyRefused` and `QueueUnavailable`."""
        digest, key, plain = _new(name, scopes, limits, (await self._look()).values())
        with unavailable_as_refusal():
            added = await _ADD.arun(self._client, [keys.API_KEYS], digest, msgspec.json.encode(key), name)
        await self._look()
        if not added:
            raise _taken(name)
        return key, plain

    async def limit(self, name: str, limits: Limits | None) -> ApiKey:
        """Let a key ask for so much from now on; by its id or its name. Raises likewise."""
        digest, key = _find(await self._look(), name)
        key = msgspec.structs.replace(key, limits=limits)
        with unavailable_as_refusal():
            replaced = await _REPLACE.arun(self._client, [keys.API_KEYS], digest, msgspec.json.encode(key))
        await self._look()
        if not replaced:
            raise KeyRefused(f"The API key '{name}' has just been revoked.")
        return key

    async def revoke(self, name: str) -> ApiKey:
        """Make a key useless; by its id or its name. Raises likewise."""
        digest, key = _find(await self._look(), name)
        with unavailable_as_refusal():
            await self._client.hdel(keys.API_KEYS, digest)
        await self._look()
        return key

    async def _look(self) -> dict[str, ApiKey]:
        reading = self._readings.begin()
        with unavailable_as_refusal():
            raw = await cast("Awaitable[dict[bytes, bytes]]", self._client.hgetall(keys.API_KEYS))
        if self._readings.keeps(reading) or self._known is None:
            self._known = _read(raw)
            self._read_at = time.monotonic()
        return self._known


def _read(raw: dict[bytes, bytes]) -> dict[str, ApiKey]:
    found = {}
    for digest, kept in raw.items():
        try:
            key = _decoder.decode(kept)
        except msgspec.DecodeError as error:
            # It opens nothing, and must not keep the others from doing so.
            log.warning("the API key %s cannot be read and is not obeyed: %s", text(digest)[:ID_DIGITS], error)
            continue
        found[text(digest)] = key
    return found
