"""One answer on its way to one client: begun while the client is there, and surely closed when it is not."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from api.answer import Answer, ClientGone, Stopped, disconnected
from api.auth import limits_of, owner_of, require
from api.drain import close
from api.durations import read_duration
from api.errors import INTERNAL, STOPPING, HttpProblem, allowance_headers, room_headers, unsupported
from api.framing import GRACE, waiting_headers
from api.interruption import Interrupted, first_of, unless
from api.known_clients import clock_last, is_side_request, without_own_tools
from api.needs import drain_of, services_of, settings_of
from tasks.api_keys import Scope
from tasks.errors import JobCancelled, JobFailed
from tasks.events import Event, Failed, Finished, FinishReason, Reply, fold
from tasks.jobs import Kept, Lane, Once, Rendering
from tasks.requests import ChatRequest, Request
from tasks.roster import ModelStatus

Result = TypeVar("Result")


async def while_connected(http: HttpRequest, work: Coroutine[object, object, Result]) -> Result:
    """Run `work`; when the client leaves or the server stops first, cancel it. The body must have been read.

    Raises `ClientGone`, and `HttpProblem` when the server stops.
    """
    stopping = drain_of(http).ended
    try:
        return await unless(first_of(partial(disconnected, http), stopping.wait), work)
    except Interrupted:
        raise HttpProblem(STOPPING) if stopping.is_set() else ClientGone from None


async def begin(
    http: HttpRequest,
    model: str | None,
    request: Request,
    *,
    stream: bool,
    lane: Lane = Lane.INTERACTIVE,
    rendering: Callable[[str, ModelStatus], Rendering] | None = None,
    kept: Kept | None = None,
    attended: bool = True,
    webhook: str | None = None,
    once: Once | None = None,
) -> Answer:
    """Accept a job for this client, who needs the scope for it. Raises as `Relay.start` and `while_connected` do."""
    require(http, Scope.INFERENCE)
    if isinstance(request, ChatRequest):
        request = as_read(http, request)
    if lane is Lane.INTERACTIVE and settings_of(http).side_requests and is_side_request(request):
        lane = Lane.BACKGROUND
    left_out = 0

    def spared(status: ModelStatus, asked: Request) -> Request:
        nonlocal left_out
        if not isinstance(asked, ChatRequest):
            return asked
        calls_tools, length = "tools" in status.capabilities, status.card.context_length
        rest = without_own_tools(asked, calls_tools=calls_tools, context_length=length)
        left_out = len(asked.tools) - len(rest.tools)
        return rest

    start = services_of(http)["relay"].start(
        model,
        request,
        owner=owner_of(http),
        lane=lane,
        grace=_grace(http, stream),
        rendering=rendering,
        kept=kept,
        attended=attended,
        webhook=webhook,
        once=once,
        limits=limits_of(http),
        for_model=spared if settings_of(http).spare_tools else None,
    )
    # It may take long: until a board has begun to load the model.
    answer = await while_connected(http, start)
    answer.tools_left_out = left_out
    return answer


def as_read(http: HttpRequest, request: ChatRequest) -> ChatRequest:
    """The chat as it will be read: with the clock last, if the settings say so."""
    return clock_last(request) if settings_of(http).clock_last else request


def _grace(http: HttpRequest, stream: bool) -> float:
    """For how many seconds a client that has left may come back: as it asks, within bounds, else as the settings say."""
    settings, asked = settings_of(http), http.headers.get(GRACE)
    if not stream:
        if asked is not None:
            raise unsupported(
                GRACE, f"'{GRACE}' is for streams: nobody can come back to an answer of which nothing was sent."
            )
        return 0.0
    return settings.stream_grace if asked is None else read_duration(asked, GRACE, settings.stream_grace_limit)


def headers_of(answer: Answer) -> dict[str, str]:
    """What the headers of every answer tell of its job: its id, its place when accepted, the room in its queue, and what is left
    to its client."""
    headers = {"x-job-id": answer.job}
    if answer.waiting is not None:
        headers |= waiting_headers(answer.waiting)
    if answer.room is not None:
        headers |= room_headers(answer.room)
    if answer.allowance is not None:
        headers |= allowance_headers(answer.allowance)
    if answer.tools_left_out:
        headers["x-tools-left-out"] = str(answer.tools_left_out)
    return headers


async def whole(http: HttpRequest, answer: Answer) -> tuple[Reply, Finished]:
    """The folded answer with its end. Raises as `said` does."""
    events, end = await said(http, answer)
    return fold(events), end


async def said(http: HttpRequest, answer: Answer) -> tuple[list[Event], Finished]:
    """Every event of the answer, and the last one besides.

    Raises `JobFailed`, `JobCancelled`, `ClientGone`, and `HttpProblem` when the server stops.
    """
    try:
        with drain_of(http).holding(answer):
            events = await answer.events(http)
    except Stopped:
        raise HttpProblem(replace(STOPPING, job=answer.job)) from None
    finally:
        await close(answer)
    match events[-1] if events else None:
        case Finished(reason=FinishReason.CANCELLED):
            raise JobCancelled(answer.job)
        case Finished() as end:
            return events, end
        case Failed() as failed:
            raise JobFailed(answer.job, failed)
        case _:
            raise HttpProblem(replace(INTERNAL, job=answer.job))
