"""What is known of the files that clients uploaded or batches wrote; their bytes lie elsewhere (`api/storage.py`)."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import redis.asyncio

from tasks import keys
from tasks.connection import text, unavailable_as_refusal
from tasks.errors import FileUnknown, StorageFull
from tasks.jobs import is_job_id, new_job_id
from tasks.lua import Script

PREFIX = "file-"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file. `size` in bytes, `created` in unix seconds, `expires_after` in seconds from then; None is never.

    `owner` is who uploaded it, as the queue tells its clients apart."""

    id: str
    owner: str
    filename: str
    purpose: str
    size: int
    created: int
    expires_after: int | None = None

    @property
    def expires(self) -> int | None:
        """When it goes, in unix seconds."""
        return None if self.expires_after is None else self.created + self.expires_after


def new_file_id() -> str:
    """An id nobody can guess."""
    return PREFIX + new_job_id()


def is_file_id(text: str) -> bool:
    """Whether `text` has the form of a file's id; anything else never becomes a name."""
    return text.startswith(PREFIX) and is_job_id(text.removeprefix(PREFIX))


_ADD = Script(
    """
-- KEYS files due   ARGV id file expires-ms|-1 -> nothing
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
keep_clock()
if ARGV[3] ~= '-1' then redis.call('ZADD', KEYS[2], now() + ARGV[3], ARGV[1]) end
""",
    flags="",
)
_DUE = Script(
    """
-- KEYS due -> ids   Their time is over, by the service's clock.
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now(), 'LIMIT', 0, 100)
"""
)
_decoder = msgspec.json.Decoder(StoredFile)


class FileBook:
    """All files by their ids. Its methods raise `QueueUnavailable` while Redis is away."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def check_room(self) -> None:
        """Raises `StorageFull` while nothing new is taken, as `up` says for the sake of its disk."""
        with unavailable_as_refusal():
            refusal = cast("bytes | None", await self._client.get(keys.REFUSAL))
        if refusal is not None:
            raise StorageFull(text(refusal))

    async def add(self, file: StoredFile) -> None:
        """Remember a file whose bytes are there."""
        seconds = file.expires_after
        with unavailable_as_refusal():
            await _ADD.arun(
                self._client,
                [keys.FILES, keys.FILES_DUE],
                *(file.id, msgspec.json.encode(file), -1 if seconds is None else seconds * 1000),
            )

    async def get(self, file_id: str) -> StoredFile:
        """One file. Raises `FileUnknown`."""
        found = None
        if is_file_id(file_id):
            with unavailable_as_refusal():
                found = cast("bytes | None", await cast(Any, self._client.hget(keys.FILES, file_id)))
        if found is None:
            raise FileUnknown(file_id)
        return _decoder.decode(found)

    async def every(self) -> list[StoredFile]:
        """All of them, the oldest first."""
        with unavailable_as_refusal():
            found = cast("list[bytes]", await cast(Any, self._client.hvals(keys.FILES)))
        return sorted(map(_decoder.decode, found), key=lambda file: (file.created, file.id))

    async def remove(self, file_id: str) -> bool:
        """Forget one; whether it was known. Its bytes are not touched."""
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hdel(keys.FILES, file_id)
                pipe.zrem(keys.FILES_DUE, file_id)
                removed, _ = await pipe.execute()
        return bool(removed)

    async def due(self) -> list[str]:
        """The ids of those whose time is over. They are known until they are removed."""
        with unavailable_as_refusal():
            found = cast("list[bytes]", await _DUE.arun(self._client, [keys.FILES_DUE]))
        return [each.decode() for each in found]
