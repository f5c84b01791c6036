"""The breath of an API process: while it can be heard, the jobs that name it as their reader are not computed for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.asyncio

from tasks import keys
from tasks.connection import UNREACHABLE
from tasks.jobs import new_job_id
from tasks.presence import BREATH, breathe_async

log = logging.getLogger("rockchipllama.api")


@asynccontextmanager
async def breathing(client: redis.asyncio.Redis, lease: float) -> AsyncIterator[str]:
    """Breathe while the block lasts, at least three times in a `lease` (seconds). Yields the name this process has as a
    reader, which no other has had or will have."""
    name = f"api:{new_job_id()}"
    task = asyncio.create_task(_breathe(client, name, min(BREATH, lease / 3)), name="breath")
    try:
        yield name
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with suppress(*UNREACHABLE):
            await client.hdel(keys.PRESENCE, name)


async def _breathe(client: redis.asyncio.Redis, name: str, pause: float) -> None:
    while True:
        try:
            await breathe_async(client, name)
        except UNREACHABLE as error:
            log.debug("could not breathe: %s", error)  # the feed has told of the outage
        except Exception:
            log.exception("could not breathe")  # else its jobs would soon be cancelled
        await asyncio.sleep(pause)
