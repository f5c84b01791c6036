"""The one path of every front: accept a job, hand out its answer, and cancel it when nobody reads that any more."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import msgspec
import redis.asyncio

from api.answer import Answer, Waiting
from tasks import keys
from tasks.asking import Commander
from tasks.commands import AWAY, CommandCode, Keep, Load, Prepare, Unload
from tasks.errors import (
    AbilityMissing,
    AnswerTooLarge,
    CommandFailed,
    FieldRefused,
    ModelDown,
    QueueUnavailable,
    TasksError,
)
from tasks.events import Event, Mark
from tasks.feed import LiveFeed
from tasks.jobs import Kept, Lane, Once, Rendering, new_job_id
from tasks.limits import Limits
from tasks.presence import BREATH
from tasks.reader import Reader
from tasks.record_size import bound
from tasks.requests import ChatRequest, CompletionRequest, Request, ability_of
from tasks.residence import LOADED, why_unserved
from tasks.roster import ModelStatus, Roster
from tasks.standing import Gate, Standing
from tasks.store import Attended, JobStore
from tasks.waits_for import UNTOLD, WaitsFor, story, waits_for

log = logging.getLogger("rockchipllama.api")

Result = TypeVar("Result")

LOAD_PATIENCE = 30.0
"""Seconds a board may take to say that it began to load a model, or cannot."""
RESTART_PATIENCE = 10.0
"""Seconds a board's agent may take to be there again after it died."""
BREATH_PATIENCE = BREATH + 1.0
"""Seconds a board may take to breathe again after Redis came back, which remembers no breaths."""
LOADED_PATIENCE = 600.0
"""Seconds whoever asked for nothing but a load waits for room, and then for its end."""
ROOM_LOOK = 1.0
"""Seconds between two tries to load what there was no room for."""
UNLOAD_PATIENCE = 60.0
"""Seconds a board may take to stop a worker, whose job in hand gets some to end."""
PREPARE_PATIENCE = 130.0
"""Seconds a board may take to check a waiting job."""


class _NoRoomYet(ModelDown):
    """Raised when the model fits once others can be unloaded."""


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
        record_limit: int,
        trace: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`trace` tells the span of the request in hand, if there is one."""
        self.client = client
        self.store = store
        self.keep_alive = keep_alive
        """Seconds of silence after which a waiting client is told that the line is alive."""
        self._name = name
        """What records call this process as their reader."""
        self._feed = feed
        self._roster = roster
        self._commander = commander
        self.patience = patience
        """Seconds a stream waits for the event that decides its status."""
        self._record_limit = record_limit
        self._trace = trace
        self._streams = itertools.count(1)
        self._background: set[asyncio.Task[None]] = set()

    def set_waits(self, *, patience: float, keep_alive: float) -> None:
        """How long streams wait from now on, in seconds, as the settings say."""
        self.patience = patience
        self.keep_alive = keep_alive

    async def start(
        self,
        model: str | None,
        request: Request,
        *,
        owner: str = "",
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
        grace: float = 0.0,
        rendering: Callable[[str, ModelStatus], Rendering] | None = None,
        kept: Kept | None = None,
        attended: bool = True,
        webhook: str | None = None,
        once: Once | None = None,
        limits: Limits | None = None,
        for_model: Callable[[ModelStatus, Request], Request] | None = None,
    ) -> Answer:
        """Resolve the model, accept a job, call a worker.

        `for_model` makes of the request what that model is to be asked. `rendering` makes of the job's id and the model how the
        answer will be said, `kept` is what the front will ask for
        later. For `grace` seconds the job goes on while nobody reads it; one that is not `attended` goes on anyway, once its
        client may know of it, or at once where it may ask for it again (`once`). `webhook` is the address that is told of its
        end.
        Raises `Refused`, `QueueUnavailable`. If the caller is cancelled meanwhile, so is the job.
        """
        status = await self._roster.find(model)
        request = _adapted(status, request)
        if for_model is not None:
            request = for_model(status, request)
        self._check(status, request)
        if status.background and lane is Lane.INTERACTIVE:
            lane = Lane.BACKGROUND
        if not status.served and status.gate is not Gate.PAUSED:
            await self._load(status)
        name = status.card.id
        job = once.job if once is not None else new_job_id()
        stack = AsyncExitStack()
        subscription = await stack.enter_async_context(self._feed.subscribe(keys.live(job)))
        reader = self._new_reader()
        answer = Answer(self, job, name, status.name, reader, stack, subscription)
        answer.grace = grace
        answer.known = once is not None
        try:
            if rendering is not None:
                answer.rendering = rendering(job, status)
            accepted = await self.store.accept(
                *(job, name, request),
                lane=lane,
                owner=owner,
                deadline=deadline,
                reader=reader if attended else None,
                grace=grace,
                rendering=answer.rendering,
                kept=kept,
                webhook=webhook,
                once=once,
                limits=limits,
                trace=self._trace(),
                held=_held(status),
            )
            if accepted.heard and subscription.confirmed.done():
                answer.is_heard()
            answer.room = accepted.room
            answer.allowance = accepted.allowance
            standing = accepted.standing
            if accepted.place > 0 or standing.running > 0 or not status.loaded or standing.gate is Gate.PAUSED:
                answer.waiting = self.waiting(name, (accepted.place, standing))
                if status.boards:
                    self.in_background(self._prepare(status.boards[0], name, job))
        except BaseException:
            # Also when the caller was cancelled: what was accepted must not run for nobody.
            await answer.close()
            raise
        return answer

    async def submit(
        self,
        model: str | None,
        request: Request,
        job: str,
        *,
        lane: Lane,
        owner: str,
        deadline: float | None = None,
        ttl: float | None = None,
        on_disk: bool = True,
    ) -> ModelStatus:
        """Accept a job that goes on whoever reads it, under this id; one that was accepted already stays as it is. The model
        that will answer. Raises `Refused`, `QueueUnavailable` and `NotOnDisk`, as `JobStore.accept` does."""
        status = await self._roster.find(model)
        request = _adapted(status, request)
        self._check(status, request)
        if not status.served and status.gate is not Gate.PAUSED:
            await self._load(status)
        await self.store.accept(
            *(job, status.card.id, request),
            lane=lane,
            owner=owner,
            deadline=deadline,
            ttl=ttl,
            on_disk=on_disk,
            held=_held(status),
        )
        return status

    async def outcome(self, job: str) -> list[Event]:
        """Everything a job said, once it has ended. Raises `Forgotten`, `Unreadable` and what the client of Redis raises."""
        async with self._feed.subscribe(keys.live(job)) as subscription:
            reader = Reader(self.client, subscription, job)
            return [item.event async for item in reader.follow() if item is not None]

    async def resume(self, job: str, read: Mark | None = None) -> tuple[Answer, Attended]:
        """The answer of a job that was accepted before, by whichever process, from its first event on, and how it stands.

        A record that no longer holds what was `read` of it before is not told: the answer is lost then.
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
        answer = Answer(self, job, attended.model, attended.name, reader, stack, subscription, read)
        answer.known = True
        answer.rendering = attended.rendering
        answer.grace = attended.grace
        return answer, attended

    async def load(self, status: ModelStatus) -> None:
        """Have a board load the model once there is room, and wait until it is loaded; where it is, it has its time from now on.
        Raises `ModelDown`, `QueueUnavailable`."""
        if status.loaded:
            model = status.card.id
            for board in {worker.board for worker in self._roster.workers(model) if worker.state in LOADED}:
                with suppress(CommandFailed):  # its agent may be away; the model is there
                    await self._commander.ask(board, Load(model, by_hand=True), LOAD_PATIENCE)
            return
        now = asyncio.get_running_loop().time
        give_up = now() + LOADED_PATIENCE
        while True:
            try:
                await self._load(status, by_hand=True)
                break
            except _NoRoomYet:
                if now() > give_up:
                    raise
                await asyncio.sleep(ROOM_LOOK)
        begun, seen = now(), False
        while not status.loaded:
            if now() - begun > (LOADED_PATIENCE if status.loading else LOAD_PATIENCE) or (seen and not status.loading):
                raise ModelDown(status.card.id, "it was not loaded; the log of its board says why.")
            seen |= status.loading
            await asyncio.sleep(0.1)
            await self._roster.refresh()
            status = self._roster.resolve(status.card.id)

    async def unload(self, model: str) -> None:
        """Have every board that has a worker of the model stop it. Raises `CommandFailed`, `QueueUnavailable`."""
        await self._roster.refresh()
        boards = {worker.board for worker in self._roster.workers(model)}
        await asyncio.gather(*(self._commander.ask(board, Unload(model), UNLOAD_PATIENCE) for board in boards))
        # Who asks for it next must not be taken for served.
        await self._roster.refresh()

    def waiting(self, model: str, found: tuple[int, Standing] | None) -> Waiting:
        """What a job of a model is told while it waits: how many are before it, and how its queue stands; None of one that does
        not wait any more."""
        status = next((each for each in self._roster.models() if each.card.id == model), None)
        why = story(status) if status is not None else ""
        if found is None:
            return Waiting(None, None, why)
        place, standing = found
        told = status is None or waits_for(status) not in UNTOLD
        return Waiting(place + 1, standing.wait(place) if told else None, why)

    def keep(self, status: ModelStatus, seconds: float) -> None:
        """Have the boards that have the model let it stay loaded so long after its last job, soon; below 0 is for ever."""
        for board in status.boards:
            self.in_background(self._keep(board, Keep(status.card.id, seconds)))

    async def _keep(self, board: str, command: Keep) -> None:
        try:
            await self._commander.ask(board, command, LOAD_PATIENCE)
        except (CommandFailed, QueueUnavailable) as error:
            log.warning("a board was not told how long %s is to stay: %s", command.model, error)

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

    def _check(self, status: ModelStatus, request: Request) -> None:
        """Refuse what the model's card says it cannot do, and what would be too large."""
        _check(status, request)
        size = bound(request, status.card.context_length, status.card.embedding_length or 0)
        if size is not None and size > self._record_limit:
            raise AnswerTooLarge(size, self._record_limit)

    async def _load(self, status: ModelStatus, *, by_hand: bool = False) -> None:
        """Have a board load the model. Raises `ModelDown`."""
        model = status.card.id
        loop = asyncio.get_running_loop()
        while not status.boards:
            if loop.time() > self._feed.connected + BREATH_PATIENCE:
                raise ModelDown(model, why_unserved(status, self._roster.snapshot))
            await asyncio.sleep(0.1)
            status = await self._roster.find(model)
            if status.served:
                return
        give_up = loop.time() + RESTART_PATIENCE
        while True:
            failures: list[CommandFailed] = []
            for board in status.boards:
                try:
                    await self._commander.ask(board, Load(model, by_hand=by_hand), LOAD_PATIENCE)
                    return
                except CommandFailed as error:
                    failures.append(error)
            # An agent that breathed a moment ago and does not listen is being restarted.
            if any(error.code != AWAY for error in failures) or loop.time() > give_up:
                waits = next((error for error in failures if error.code == CommandCode.NO_ROOM_YET), None)
                raise _NoRoomYet(model, str(waits)) if waits is not None else ModelDown(model, str(failures[-1]))
            await asyncio.sleep(0.5)

    async def _prepare(self, board: str, model: str, job: str) -> None:
        """Have a board check a job that must wait, so that a hopeless one is refused before its turn."""
        try:
            await self._commander.ask(board, Prepare(model, job), PREPARE_PATIENCE)
        except (CommandFailed, QueueUnavailable) as error:
            log.debug("not checked ahead: %s", error, extra={"job": job})


def _held(status: ModelStatus) -> str | None:
    """What a job waits for besides others, for its record; None where it is nothing. Whether its queue is paused is seen in the
    step that accepts it."""
    held = waits_for(status)
    return held.value if held not in (WaitsFor.TURN, WaitsFor.QUEUE) else None


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
        asked = request.sampling if hasattr(request.sampling, field) else request
        if getattr(asked, field, None) is not None:
            raise FieldRefused(field, why)
