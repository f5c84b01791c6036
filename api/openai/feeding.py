"""Looks after all batches, and after files whose time is over: each batch is fed by some API process, and by one at a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.openai.feeder import Feeder
from api.relay import Relay
from api.settings import ApiSettings
from api.storage import Storage
from tasks.batch import BatchBook, BatchOrder, FeederReplaced
from tasks.connection import UNREACHABLE, Outages
from tasks.errors import QueueUnavailable
from tasks.files import FileBook
from tasks.roster import Roster

log = logging.getLogger("rockchipllama.batch")

LOOK = 5.0
"""Seconds between two looks for batches that nobody feeds."""
TIDY = 3600.0
"""Seconds between two looks for files that nobody knows."""
AT_ONCE = 8
"""Batches that one process feeds at the same time; the others wait for one of them to end."""


class Feeding:
    """The feeding of batches by one process."""

    def __init__(
        self,
        batches: BatchBook,
        files: FileBook,
        storage: Storage,
        relay: Relay,
        roster: Roster,
        settings: ApiSettings,
        lease: float,
    ) -> None:
        """`lease` is in seconds: for how long a batch stays with a process that says nothing."""
        self._batches = batches
        self._files = files
        self._storage = storage
        self._relay = relay
        self._roster = roster
        self._settings = settings
        self._lease = lease
        self._holder = secrets.token_hex(8)
        self._wanted = asyncio.Event()
        self._fed: dict[str, asyncio.Task[None]] = {}
        self._over: set[str] = set()
        self._redis = Outages(log, "the feeding of batches")

    def look(self) -> None:
        """There is something to do now."""
        self._wanted.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Feeding]:
        """Feed while the block lasts."""
        task = asyncio.create_task(self._run(), name="feeding")
        try:
            yield self
        finally:
            tasks = [task, *self._fed.values()]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        tidied = -TIDY
        while True:
            self._wanted.clear()  # what is told from here on, this look may miss
            try:
                await self._look()
                await self._forget()
                if loop.time() - tidied > TIDY:
                    await self._tidy()
                    tidied = loop.time()
                self._redis.found()
            except (QueueUnavailable, *UNREACHABLE) as error:
                self._redis.lost(error)
            except Exception:
                log.exception("a look after the batches broke off; the next one comes in %.0f s", LOOK)
            try:
                async with asyncio.timeout(LOOK):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        self._fed = {batch: task for batch, task in self._fed.items() if not task.done()}
        orders = await self._batches.every()
        self._over &= {order.id for order in orders}
        for order in orders:
            if order.id in self._fed or order.id in self._over:
                continue
            if len(self._fed) >= AT_ONCE:
                return
            hold = await self._batches.take(order.id, self._holder, self._lease)
            if hold is not None:
                feeder = Feeder(
                    order,
                    hold,
                    relay=self._relay,
                    roster=self._roster,
                    files=self._files,
                    storage=self._storage,
                    settings=self._settings,
                    lease=self._lease,
                )
                self._fed[order.id] = asyncio.create_task(self._feed(order, feeder), name=f"feeding {order.id}")
            elif await self._batches.is_over(order.id):
                self._over.add(order.id)

    async def _feed(self, order: BatchOrder, feeder: Feeder) -> None:
        try:
            await feeder.run()
        except FeederReplaced as error:
            log.info("%s", error)
        except (QueueUnavailable, OSError, *UNREACHABLE) as error:
            # The next look goes on with it.
            log.warning("the batch %s is interrupted: %s", order.id, error)
            await asyncio.sleep(LOOK)
        except asyncio.CancelledError:
            try:
                await feeder.leave()
            except (FeederReplaced, QueueUnavailable, *UNREACHABLE):
                log.debug("the batch %s is left to its lease", order.id)
            raise
        except Exception:
            log.exception("the feeding of %s broke off", order.id)
            await asyncio.sleep(LOOK)

    async def _forget(self) -> None:
        """Drop the files and batches whose time is over."""
        due = await self._files.due()
        read = await self._being_read() if due else set()
        for file_id in due:
            if file_id in read:
                continue
            await self._storage.delete(file_id)
            await self._files.remove(file_id)
        for batch in await self._batches.due():
            await self._batches.remove(batch)

    async def _being_read(self) -> set[str]:
        """The inputs of batches that go on."""
        orders = [order for order in await self._batches.every() if order.id not in self._over]
        return {order.input_file for order in orders if not await self._batches.is_over(order.id)}

    async def _tidy(self) -> None:
        known = {file.id for file in await self._files.every()}
        for order in await self._batches.every():
            known |= {order.output_file, order.error_file}
        await self._storage.tidy(known)
