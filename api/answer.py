"""One answer on its way to one client: its events as they come, until they end, the client leaves or this process stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request as HttpRequest

from api.interruption import Interrupted, unless
from tasks.connection import OUTAGE_PATIENCE, UNREACHABLE
from tasks.errors import JobCancelled, JobFailed, JobNotFound, QueueUnavailable
from tasks.events import (
    TERMINAL,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Mark,
    Numbered,
    Queued,
    Started,
    Unreadable,
)
from tasks.feed import Subscription
from tasks.jobs import Rendering, Room
from tasks.limits import Allowance
from tasks.reader import BELL, Forgotten, Reader
from tasks.store import ACCEPTED

if TYPE_CHECKING:
    from api.relay import Relay

log = logging.getLogger("rockchipllama.api")

CLOSE_PATIENCE = 1.0
"""Seconds a client waits for its job's cancellation to be recorded."""

FORGOTTEN = (
    "The job queue broke down and came back without its last moments, to which this answer, or a part of it, belonged. "
    "Ask again."
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not an event of the job: it still waits, or is silent for long. Fronts keep the line warm with it.

    `position` counts from 1; None once a worker has the job. `wait` is about how many seconds it will be, where that can be
    told. `why` says what keeps it besides those before it.
    """

    position: int | None
    wait: float | None = None
    why: str = ""


class ClientGone(Exception):
    """Raised when the client closed its connection before the answer was whole; there is nobody to answer."""


class Stopped(Exception):
    """Raised when this process is to end, and with it its part in the answer; what becomes of the job is its grace's to say."""


class Answer:
    """One accepted job on its way to one client. Iterate it once, or ask for all `events`; then `close` it.

    `job` is its id, `model` the id of the resolved model with its adapter, if it has one, `waiting` its place in the queue
    when accepted (None: next in turn, with a worker free to take it), `room` what was left of the queue then.
    `rendering` is how the answer is said, where its front will say it, `grace` for how many seconds its client may be away.
    """

    def __init__(
        self,
        relay: Relay,
        job: str,
        queue: str,
        model: str,
        reader: str,
        stack: AsyncExitStack,
        subscription: Subscription,
        read: Mark | None = None,
    ) -> None:
        self.job = job
        self.model = model
        self.waiting: Waiting | None = None
        self.room: Room | None = None
        self.allowance: Allowance | None = None
        self.tools_left_out = 0
        self.rendering: Rendering | None = None
        self.grace = 0.0
        self.known = False
        """Its client may know the job by now, and so come back to it. Without that there is no grace."""
        self._name = reader
        self._queue = queue
        self._relay = relay
        self._stack = stack
        self._subscription = subscription
        self._read = read
        self._reader = Reader(relay.client, subscription, job, read)
        self._place: int | None = -1
        self._why = ""
        self._source = self._follow()
        self._ahead: list[Numbered] = []
        self._ended = False
        self._forgotten = False
        self._stopping = False
        self._closed = False

    def is_heard(self) -> None:
        """It was accepted a moment ago, and nothing of what follows that can have been missed."""
        self._ahead.append(ACCEPTED)
        self._reader.knows(ACCEPTED)

    async def first(self) -> None:
        """Wait, for as long as a stream may, for the event that decides a status. Raises `JobFailed` or `JobCancelled` if that
        is the job's end as one or the other, and what iterating raises."""
        try:
            async with asyncio.timeout(self._relay.patience):
                await self._decide()
        except TimeoutError:
            # The generator was cut off in mid-step and cannot be resumed: read on from what was seen.
            self._source = self._follow()
            self._subscription.put(BELL)  # and say at once what it waits for
        match self._ahead[-1].event if self._ahead else None:
            case Failed() as failed:
                raise JobFailed(self.job, failed)
            case Finished(reason=FinishReason.CANCELLED):
                raise JobCancelled(self.job)

    async def _decide(self) -> None:
        async for item in self._source:
            if isinstance(item, Waiting):
                continue
            self._ahead.append(item)
            if not isinstance(item.event, Queued | Started):
                return

    async def __aiter__(self) -> AsyncIterator[Numbered | Waiting]:
        """Every event in order, each once, up to the last (Finished or Failed), with `Waiting` in between.

        What is not on record has the number 0. Raises `Stopped`, and `QueueUnavailable` when Redis stays away.
        """
        ahead, self._ahead = self._ahead, []
        for numbered in ahead:
            yield numbered
        if self.waiting and not ahead[1:]:
            yield self.waiting  # nothing but Queued yet: say at once why nothing comes
        if not self._ended:
            async for item in self._source:
                yield item

    async def events(self, http: HttpRequest) -> list[Event]:
        """All of them, once the last has come. Raises `ClientGone` when the client leaves first, and `Stopped`."""
        self.known = True
        try:
            return await unless(disconnected(http), self._collect())
        except Interrupted:
            raise ClientGone from None
        finally:
            await self.close()

    async def _collect(self) -> list[Event]:
        return [item.event async for item in self if not isinstance(item, Waiting)]

    def stop(self) -> None:
        """End the reading: whoever iterates gets `Stopped`, soon."""
        self._stopping = True
        self._subscription.put(BELL)

    async def close(self) -> None:
        """Read no more. A job that has not ended and that nobody else reads is cancelled, at once or after its grace.
        Twice is safe; done even when the caller is being cancelled itself.

        Returns once that is done, or a moment later while Redis is away: then it goes on in the background.
        """
        if not self._closed:
            self._closed = True
            await asyncio.wait({self._relay.in_background(self._close())}, timeout=CLOSE_PATIENCE)

    async def _close(self) -> None:
        try:
            if self._forgotten or not (self._ended or self.known):
                await self._relay.cancel(self.job)
            elif not self._ended:
                await self._relay.leave(self.job, self._name)
        finally:
            await self._stack.aclose()

    async def _follow(self) -> AsyncIterator[Numbered | Waiting]:
        """The job's events from where the last call left off, through outages of Redis."""
        loop = asyncio.get_running_loop()
        told = up = loop.time()
        while True:
            if self._stopping:
                raise Stopped
            try:
                async for item in self._reader.follow():
                    up = loop.time()
                    if item is not None:
                        self._ended = isinstance(item.event, TERMINAL)
                        yield item
                        continue
                    if self._stopping:
                        raise Stopped
                    try:
                        found = await self._relay.store.place(self.job, self._queue)
                    except JobNotFound:
                        continue  # the reader knows whether that is the end
                    place = None if found is None else found[0]
                    waiting = self._relay.waiting(self._queue, found)
                    why = waiting.why
                    if (place, why) != (self._place, self._why) or loop.time() - told >= self._relay.keep_alive:
                        self._place, self._why, told = place, why, loop.time()
                        yield waiting
                return
            except Forgotten as error:
                log.error("an answer is lost: %s", error, extra={"job": self.job})
                # Not the job's own end: closing this answer cancels what is left of it. Others may read what somebody has come
                # back to, so that is left to them, and to its grace.
                self._forgotten = self._read is None
                yield Numbered(0, Failed(FailureCode.ENGINE_LOST, FORGOTTEN))
                return
            except Unreadable as error:
                log.error("an answer is not understood: %s", error, extra={"job": self.job})
                yield Numbered(0, Failed(FailureCode.UNREADABLE, str(error)))
                return
            except (*UNREACHABLE, QueueUnavailable) as error:
                if loop.time() - up > OUTAGE_PATIENCE:
                    detail = error.detail if isinstance(error, QueueUnavailable) else str(error)
                    raise QueueUnavailable(detail, begun=True) from error
                yield Waiting(None)
                await asyncio.sleep(0.5)


async def disconnected(http: HttpRequest) -> None:
    """Wait until its client has gone. The body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
