"""A job's record as a test reads it: whole, and past every reader."""

from __future__ import annotations

from typing import cast

import redis
import redis.asyncio

from tasks import keys
from tasks.events import Numbered
from tasks.stream import RecordedPiece, decode_pieces, numbered

Entries = list[tuple[bytes, dict[bytes, bytes]]]


async def read_events(client: redis.asyncio.Redis, job: str) -> list[Numbered]:
    """All events of a job. Raises `Unreadable`."""
    entries = cast(Entries, await client.xrange(keys.events(job)))
    return [item for entry, fields in entries for item in numbered(entry, fields[b"e"])]


def read_pieces(client: redis.Redis, job: str) -> list[RecordedPiece]:
    """Every piece the engine gave for a job, over all its claims."""
    entries = cast(Entries, client.xrange(keys.events(job)))
    return [piece for _, fields in entries for piece in decode_pieces(fields.get(b"p", b""))]
