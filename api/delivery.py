"""One answer on its way to one client: begun while the client is there, and surely closed when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from api.auth import require
from api.drain import close
from api.errors import INTERNAL, STOPPING, HttpProblem
from api.needs import drain_of, services_of
from api.relay import Answer, ClientGone
from tasks.api_keys import Scope
from tasks.errors import JobFailed
from tasks.events import Failed, Finished, FinishReason, Reply
from tasks.jobs import Lane
from tasks.requests import Request

Result = TypeVar("Result")


async def while_connected(http: HttpRequest, work: Coroutine[object, object, Result]) -> Result:
    """Run `work`; when the client leaves or the server stops first, cancel it. The body must have been read.

    Raises `ClientGone`, and `HttpProblem` when the server stops.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(http))
    stopping = asyncio.ensure_future(drain_of(http).ended.wait())
    taken = False
    try:
        await asyncio.wait({task, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone if gone.done() else HttpProblem(STOPPING)
        taken = True
        return task.result()
    finally:
        gone.cancel()
        stopping.cancel()
        if not taken:
            task.cancel()
            task.add_done_callback(_discard)


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


_late: set[asyncio.Future[None]] = set()
"""Closings of answers that came too late; the event loop alone would not keep them alive."""


def _discard(task: asyncio.Future[Result]) -> None:
    # It may have ended well before it saw the cancellation: then its answer belongs to nobody, and must not run on.
    if task.cancelled() or task.exception() is not None:
        return
    result = task.result()
    if isinstance(result, Answer):
        closing = asyncio.ensure_future(close(result))
        _late.add(closing)
        closing.add_done_callback(_late.discard)


async def begin(
    http: HttpRequest, model: str | None, request: Request, *, stream: bool, owner: str, lane: Lane
) -> Answer:
    """Accept a job for this client, who needs the scope for it. Raises as `Relay.start` and `while_connected` do."""
    require(http, Scope.INFERENCE)
    start = services_of(http)["relay"].start(model, request, commit_early=stream, owner=owner, lane=lane)
    # It may take long: until the first event of a stream, or until a board has begun to load the model.
    return await while_connected(http, start)


async def whole(http: HttpRequest, answer: Answer) -> tuple[Reply, Finished]:
    """The folded answer with its end. Raises `JobFailed`, `ClientGone`, and `HttpProblem` when the job was cancelled."""
    drain = drain_of(http)
    try:
        with drain.holding(answer):
            reply = await answer.whole(http)
    finally:
        await close(answer)
    match reply.end:
        case Finished(reason=FinishReason.CANCELLED):
            raise HttpProblem(replace(drain.cancelled(), job=answer.job))
        case Finished():
            return reply, reply.end
        case Failed():
            raise JobFailed(answer.job, reply.end)
        case None:
            raise HttpProblem(replace(INTERNAL, job=answer.job))
