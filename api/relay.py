"""The one path of every front: accept a job, wait for its first event, yield its events, cancel it when its client leaves."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

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
from tasks.events import TERMINAL, Failed, FailureCode, Numbered, Queued, Reply, Started, fold
from tasks.feed import LiveFeed, Subscription
from tasks.jobs import Lane, Rendering, Room, new_job_id
from tasks.reader import BELL, Forgotten, Reader
from tasks.requests import ChatRequest, CompletionRequest, Request, ability_of
from tasks.roster import ModelStatus, Roster
from tasks.store import Attended, JobStore

log = logging.getLogger("rockchipllama.api")

Result = TypeVar("Result")

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


class Stopped(Exception):
    """Raised when this process is to end, and with it its part in the answer; what becomes of the job is its grace's to say."""


class Answer:
    """One accepted job on its way to one client. Iterate it once, or ask for `whole`; then `close` it.

    `job` is its id, `model` the id of the resolved model with its adapter, if it has one, `position` its place in the
    queue when accepted (0: next in turn, with a worker free to take it), `room` what was left of the queue then.
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
    ) -> None:
        self.job = job
        self.model = model
        self.position = 0
        self.room: Room | None = None
        self.rendering: Rendering | None = None
        self.grace = 0.0
        self.known = False
        """Its client may know the job by now, and so come back to it. Without that there is no grace."""
        self._name = reader
        self._queue = queue
        self._relay = relay
        self._stack = stack
        self._subscription = subscription
        self._reader = Reader(relay.client, subscription, job)
        self._place: int | None = -1
        self._source = self._follow()
        self._ahead: list[Numbered] = []
        self._ended = False
        self._forgotten = False
        self._stopping = False
        self._closed = False

    async def first(self, patience: float) -> None:
        """Wait, at most `patience` seconds, for the event that decides a status. Raises `JobFailed` if that is a failure."""
        try:
            async with asyncio.timeout(patience):
                await self._decide()
        except TimeoutError:
            # The generator was cut off in mid-step and cannot be resumed: read on from what was seen.
            self._source = self._follow()
        if self._ahead and isinstance(failed := self._ahead[-1].event, Failed):
            raise JobFailed(self.job, failed)

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
        if self.position and not ahead[1:]:
            yield Waiting(self.position)  # nothing but Queued yet: say at once why nothing comes
        if not self._ended:
            async for item in self._source:
                yield item

    async def whole(self, http: HttpRequest) -> Reply:
        """The folded answer. Raises `JobFailed` when the job fails, `ClientGone` when the client leaves first, and `Stopped`."""
        self.known = True
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
        return fold([item.event async for item in self if not isinstance(item, Waiting)])

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
                    place = await self._relay.store.place(self.job, self._queue)
                    if place != self._place or loop.time() - told >= self._relay.keep_alive:
                        self._place, told = place, loop.time()
                        yield Waiting(None if place is None else place + 1)
                return
            except (Forgotten, JobNotFound) as error:
                log.error("an answer is lost: %s", error, extra={"job": self.job})
                self._forgotten = True  # not the job's own end: closing this answer cancels what is left of it
                yield Numbered(0, Failed(FailureCode.ENGINE_LOST, FORGOTTEN))
                return
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
        self._streams = itertools.count(1)
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
        grace: float = 0.0,
        rendering: Callable[[str, ModelStatus], Rendering] | None = None,
    ) -> Answer:
        """Resolve the model, accept a job, call a worker.

        `rendering` makes of the job's id and the model how the answer will be said. For `grace` seconds the job goes on while
        nobody reads it.
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
        reader = self._new_reader()
        answer = Answer(self, job, name, status.name, reader, stack, subscription)
        answer.grace = grace
        try:
            if rendering is not None:
                answer.rendering = rendering(job, status)
            accepted = await self.store.accept(
                *(job, name, request),
                lane=lane,
                owner=owner,
                deadline=deadline,
                reader=reader,
                grace=grace,
                rendering=answer.rendering,
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

    async def resume(self, job: str) -> tuple[Answer, Attended]:
        """The answer of a job that was accepted before, by whichever process, from its first event on, and how it stands.

        Raises `JobNotFound` and `QueueUnavailable`.
        """
        reader = self._new_reader()
        try:
            attended = await self.store.attend(job, reader)
        except BaseException:
            # Also when the caller was cancelled: it may have come among the readers all the same.
            self.in_background(self.leave(job, reader))
            raise
        stack = AsyncExitStack()
        subscription = await stack.enter_async_context(self._feed.subscribe(keys.live(job)))
        answer = Answer(self, job, attended.model, attended.name, reader, stack, subscription)
        answer.known = True
        answer.rendering = attended.rendering
        answer.grace = attended.grace
        return answer, attended

    def _new_reader(self) -> str:
        """A name for one more that reads in this process."""
        return f"{self._name}/{next(self._streams)}"

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
        """Cancel a job whose client left before it knew of it; keeps trying while Redis is away."""
        await self._insist(lambda: self.store.cancel(job, "client left"), job)

    async def leave(self, job: str, reader: str = "") -> None:
        """A client has left its answer; keeps trying while Redis is away. Once its grace is over, whoever came back keeps it."""
        left = await self._insist(lambda: self.store.leave(job, reader), job)
        if left:
            # The sweep does the same, a little later, should this process be gone by then.
            asyncio.get_running_loop().call_later(left + 0.01, lambda: self.in_background(self.leave(job)))

    async def _insist(self, step: Callable[[], Awaitable[Result]], job: str) -> Result | None:
        for _ in range(60):
            try:
                return await step()
            except QueueUnavailable:
                await asyncio.sleep(0.5)
            except TasksError:
                return None  # its record is gone, or never was
        log.warning("a job could not be cancelled, Redis stayed away", extra={"job": job})
        return None

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
