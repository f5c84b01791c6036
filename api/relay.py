"""The one path of every front: accept a job, wait for its first event, yield its events, cancel it when its client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio
from starlette.requests import Request as HttpRequest

from tasks import keys
from tasks.commands import Commander, Load, Prepare
from tasks.connection import OUTAGE_PATIENCE, UNREACHABLE
from tasks.errors import (
    AbilityMissing,
    CommandFailed,
    FieldRefused,
    JobFailed,
    JobNotFound,
    ModelDown,
    QueueUnavailable,
    TasksError,
)
from tasks.events import TERMINAL, Event, Failed, FailureCode, Queued, Reply, Started, fold
from tasks.feed import LiveFeed, Subscription
from tasks.jobs import Lane, Room, new_job_id
from tasks.reader import Forgotten, Reader
from tasks.requests import ChatRequest, CompletionRequest, Request, ability_of
from tasks.roster import ModelStatus, Roster
from tasks.store import JobStore

log = logging.getLogger("rockchipllama.api")

LOAD_PATIENCE = 30.0
"""Seconds a board may take to say that it began to load a model, or cannot."""
RESTART_PATIENCE = 10.0
"""Seconds a board's agent may take to be there again after it died."""
PREPARE_PATIENCE = 130.0
"""Seconds a board may take to check a waiting job."""
CLOSE_PATIENCE = 1.0
"""Seconds a client waits for its job's cancellation to be recorded."""

FORGOTTEN = (
    "The job queue broke down and came back without its last moments, to which this answer, or a part of it, belonged. "
    "Ask again."
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not an event of the job: it still waits, or is silent for long. Fronts keep the line warm with it.

    `position` counts from 1; None once a worker has the job.
    """

    position: int | None


class ClientGone(Exception):
    """Raised when the client closed its connection before the answer was whole; there is nobody to answer."""


class Answer:
    """One accepted job on its way to one client. Iterate it once, or ask for `whole`; then `close` it.

    `job` is its id, `model` the id of the resolved model with its adapter, if it has one, `position` its place in the
    queue when accepted (0: next in turn, with a worker free to take it), `room` what was left of the queue then.
    """

    def __init__(
        self, relay: Relay, job: str, status: ModelStatus, stack: AsyncExitStack, subscription: Subscription
    ) -> None:
        self.job = job
        self.model = status.name
        self.position = 0
        self.room: Room | None = None
        self._queue = status.card.id
        self._relay = relay
        self._stack = stack
        self._reader = Reader(relay.client, subscription, job)
        self._place: int | None = -1
        self._source = self._follow()
        self._ahead: list[Event] = []
        self._ended = False
        self._closed = False

    async def first(self, patience: float) -> None:
        """Wait, at most `patience` seconds, for the event that decides a status. Raises `JobFailed` if that is a failure."""
        try:
            async with asyncio.timeout(patience):
                await self._decide()
        except TimeoutError:
            # The generator was cut off in mid-step and cannot be resumed: read on from what was seen.
            self._source = self._follow()
        if self._ahead and isinstance(self._ahead[-1], Failed):
            raise JobFailed(self.job, self._ahead[-1])

    async def _decide(self) -> None:
        async for event in self._source:
            if isinstance(event, Waiting):
                continue
            self._ahead.append(event)
            if not isinstance(event, Queued | Started):
                return

    async def __aiter__(self) -> AsyncIterator[Event | Waiting]:
        """Every event in order, each once, up to the last (Finished or Failed), with `Waiting` in between."""
        ahead, self._ahead = self._ahead, []
        for event in ahead:
            yield event
        if self.position and not ahead[1:]:
            yield Waiting(self.position)  # nothing but Queued yet: say at once why nothing comes
        if not self._ended:
            async for item in self._source:
                yield item

    async def whole(self, http: HttpRequest) -> Reply:
        """The folded answer. Raises `JobFailed` when the job fails, `ClientGone` (and cancels) when the client leaves first."""
        collecting = asyncio.create_task(self._collect())
        leaving = asyncio.create_task(_disconnected(http))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                raise ClientGone
            reply = collecting.result()
        finally:
            collecting.cancel()
            leaving.cancel()
            await asyncio.gather(collecting, leaving, return_exceptions=True)
            await self.close()
        if isinstance(reply.end, Failed):
            raise JobFailed(self.job, reply.end)
        return reply

    async def _collect(self) -> Reply:
        return fold([event async for event in self if not isinstance(event, Waiting)])

    async def cancel(self) -> None:
        """Ask for the job's end, and go on: whoever reads the answer sees its last event."""
        if not self._ended:
            await self._relay.cancel(self.job)

    async def close(self) -> None:
        """Cancel the job unless it has ended. Twice is safe; done even when the caller is being cancelled itself.

        Returns once that is done, or a moment later while Redis is away: then it goes on in the background.
        """
        if not self._closed:
            self._closed = True
            await asyncio.wait({self._relay.in_background(self._close())}, timeout=CLOSE_PATIENCE)

    async def _close(self) -> None:
        try:
            if not self._ended:
                await self._relay.cancel(self.job)
        finally:
            await self._stack.aclose()

    async def _follow(self) -> AsyncIterator[Event | Waiting]:
        """The job's events from where the last call left off, through outages of Redis."""
        loop = asyncio.get_running_loop()
        told = up = loop.time()
        while True:
            try:
                async for item in self._reader.follow():
                    up = loop.time()
                    if item is not None:
                        self._ended = isinstance(item.event, TERMINAL)
                        yield item.event
                        continue
                    place = await self._relay.store.place(self.job, self._queue)
                    if place != self._place or loop.time() - told >= self._relay.keep_alive:
                        self._place, told = place, loop.time()
                        yield Waiting(None if place is None else place + 1)
                return
            except (Forgotten, JobNotFound) as error:
                log.error("an answer is lost: %s", error, extra={"job": self.job})
                yield Failed(FailureCode.ENGINE_LOST, FORGOTTEN)
                return  # not the job's own end: whoever closes this answer cancels what is left of it
            except (*UNREACHABLE, QueueUnavailable) as error:
                if loop.time() - up > OUTAGE_PATIENCE:
                    detail = error.detail if isinstance(error, QueueUnavailable) else str(error)
                    raise QueueUnavailable(detail, begun=True) from error
                yield Waiting(None)
                await asyncio.sleep(0.5)


class Relay:
    """Turns requests into answers through the queue."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        feed: LiveFeed,
        store: JobStore,
        roster: Roster,
        commander: Commander,
        *,
        name: str,
        patience: float,
        keep_alive: float,
    ) -> None:
        self.client = client
        self.store = store
        self.keep_alive = keep_alive
        """Seconds of silence after which a waiting client is told that the line is alive."""
        self._name = name
        """What records call this process as their reader."""
        self._feed = feed
        self._roster = roster
        self._commander = commander
        self._patience = patience
        self._background: set[asyncio.Task[None]] = set()

    async def start(
        self,
        model: str | None,
        request: Request,
        *,
        commit_early: bool,
        owner: str = "",
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
    ) -> Answer:
        """Resolve the model, accept a job, call a worker.

        With `commit_early` (streams) it then waits for the first event that decides a status, at most the patience
        setting; without, the caller takes `whole`. Raises `Refused`, `QueueUnavailable`, and `JobFailed` when the job
        failed before anything was sent. If the caller is cancelled meanwhile, so is the job.
        """
        status = await self._roster.find(model)
        request = _adapted(status, request)
        _check(status, request)
        if not status.served:
            await self._load(status)
        name = status.card.id
        job = new_job_id()
        stack = AsyncExitStack()
        subscription = await stack.enter_async_context(self._feed.subscribe(keys.live(job)))
        answer = Answer(self, job, status, stack, subscription)
        try:
            accepted = await self.store.accept(
                job, name, request, lane=lane, owner=owner, deadline=deadline, reader=self._name
            )
            answer.room = accepted.room
            if accepted.place > 0 or accepted.running > 0 or not status.loaded:
                answer.position = accepted.place + 1
                if status.boards:
                    self.in_background(self._prepare(status.boards[0], name, job))
            if commit_early:
                await answer.first(self._patience)
        except BaseException:
            # Also when the caller was cancelled: what was accepted must not run for nobody.
            await answer.close()
            raise
        return answer

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` even if nobody waits for it any more; `finish` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def finish(self, patience: float = 5.0) -> None:
        """Wait for what still runs in the background, at shutdown."""
        if self._background:
            await asyncio.wait(self._background, timeout=patience)

    async def cancel(self, job: str) -> None:
        """Cancel a job for a client that left; keeps trying while Redis is away."""
        for _ in range(60):
            try:
                await self.store.cancel(job, "client left")
                return
            except QueueUnavailable:
                await asyncio.sleep(0.5)
            except TasksError:
                return  # its record is gone, or never was
        log.warning("a job could not be cancelled, Redis stayed away", extra={"job": job})

    async def _load(self, status: ModelStatus) -> None:
        """Have a board load the model. Raises `ModelDown`."""
        model = status.card.id
        if not status.boards:
            raise ModelDown(model, f"the board '{status.card.board}' that has it is not there.")
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RESTART_PATIENCE
        while True:
            failures: list[CommandFailed] = []
            for board in status.boards:
                try:
                    await self._commander.ask(board, Load(model), LOAD_PATIENCE)
                    return
                except CommandFailed as error:
                    failures.append(error)
            # An agent that breathed a moment ago and does not listen is being restarted.
            if any(error.code != "board_away" for error in failures) or loop.time() > give_up:
                raise ModelDown(model, str(failures[-1]))
            await asyncio.sleep(0.5)

    async def _prepare(self, board: str, model: str, job: str) -> None:
        """Have a board check a job that must wait, so that a hopeless one is refused before its turn."""
        try:
            await self._commander.ask(board, Prepare(model, job), PREPARE_PATIENCE)
        except (CommandFailed, QueueUnavailable) as error:
            log.debug("not checked ahead: %s", error, extra={"job": job})


def _adapted(status: ModelStatus, request: Request) -> Request:
    """The request, to be answered by the adapter that the model's name has behind it."""
    if status.adapter is None:
        return request
    if not isinstance(request, ChatRequest | CompletionRequest):
        raise AbilityMissing(status.name, ability_of(request), ["text"])  # the rest is the model's alone
    return msgspec.structs.replace(request, adapter=status.adapter)


def _check(status: ModelStatus, request: Request) -> None:
    """Refuse what the model's card says it cannot do."""
    ability = ability_of(request)
    if ability not in status.card.abilities:
        raise AbilityMissing(status.card.id, ability, status.card.abilities)
    if not isinstance(request, ChatRequest | CompletionRequest):
        return
    for field, why in status.card.refuses.items():
        if getattr(request.sampling, field, None) is not None:
            raise FieldRefused(field, why)


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
