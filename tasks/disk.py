"""The disk of Redis: whoever must know that what was accepted would survive a power cut waits for it here."""

from __future__ import annotations

import asyncio
from typing import Final

import redis.asyncio
from redis.exceptions import ResponseError

from tasks import keys
from tasks.connection import text, unavailable_as_refusal
from tasks.errors import NotOnDisk

LOOK: Final = 3.0
"""Seconds of one question, well below `SOCKET_TIMEOUT`: a Valkey that seldom looks at its clock answers up to a second late."""
LOOKS: Final = 4
"""Questions before a disk counts as stuck. A healthy one takes a second, since the file is brought to it once in each."""
SETTLE: Final = 1.1
"""Seconds in which a file that is brought to the disk once a second begins to be."""
_MARK_TTL = 60_000

_RAM = "or set ROCKCHIPLLAMA_DURABILITY=ram, and such requests are accepted without a disk"
NO_FILE = f"its Redis keeps no append-only file. Set `appendonly yes` there, {_RAM}"
TOO_OLD = f"its Redis is older than 7.2 and cannot tell when its file is on the disk. Use Redis 7.2 or Valkey, {_RAM}"
STUCK = f"its disk did not take anything in for {LOOK * LOOKS:.0f} s"


class Disk:
    """The append-only file of Redis, as one process waits for it.

    However many wait, there is one question under way: it is answered for all who came before it was asked. So it costs one
    connection and one small write every two seconds, and nothing while nobody waits.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._asked: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def has_all(self) -> None:
        """Return once all that Redis had taken before this call is on its disk. Raises `NotOnDisk`, `QueueUnavailable`."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask(self._asked))
            self._next.add_done_callback(_ended)
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """Wait no longer; whoever still does is cancelled. Twice is safe."""
        asked = [task for task in (self._asked, self._next) if task is not None]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._asked, self._next = self._next, None
        for _ in range(LOOKS):
            if await self._look():
                break
        else:
            raise NotOnDisk(STUCK)
        # Valkey 9.1 was seen to say so before it was true, while others kept it busy. Twice, since a sync that was under way
        # when the mark was written has not seen it, and keeps the next from beginning.
        for _ in range(2):
            await asyncio.sleep(SETTLE)
            await self._syncing()  # a Valkey with nothing to do looks at its clock when it is asked something
            for _ in range(int(LOOK * LOOKS / 0.05)):
                if not await self._syncing():
                    break
                await asyncio.sleep(0.05)
            else:
                raise NotOnDisk(STUCK)

    async def _syncing(self) -> bool:
        with unavailable_as_refusal():
            return bool((await self._client.info("persistence")).get("aof_pending_bio_fsync"))

    async def _look(self) -> bool:
        with unavailable_as_refusal():
            # Redis tells how far its file is only to a connection that has written something itself, so a mark goes first.
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.set(keys.DISK_MARK, "", px=_MARK_TTL)
                pipe.execute_command("WAITAOF", 1, 0, int(LOOK * 1000))
                try:
                    _, (local, _) = await pipe.execute()
                except ResponseError as error:
                    # They are told apart by their words: both have the code ERR.
                    if "unknown command" in str(error):
                        raise NotOnDisk(TOO_OLD, retry_after=None) from error
                    if "appendonly is disabled" in str(error):
                        # `ops.up.disk` says so where it is off because the disk is full.
                        full = text(await self._client.get(keys.REFUSAL) or b"").rstrip(".")
                        raise (NotOnDisk(full[:1].lower() + full[1:]) if full else NotOnDisk(NO_FILE, None)) from error
                    raise
        return bool(local)


def _ended(task: asyncio.Task[None]) -> None:
    # Looked at here, or asyncio would complain of an error that nobody waited for any more.
    if not task.cancelled():
        task.exception()
