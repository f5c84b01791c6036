"""What went wrong, as a status: one table for all fronts, each of which puts it into its own words."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from api.answer import ClientGone
from api.value_faults import fault_of
from tasks.errors import (
    AbilityMissing,
    AnswerTooLarge,
    BatchUnknown,
    BoardLives,
    BoardUnknown,
    CommandFailed,
    FieldRefused,
    FileUnknown,
    JobCancelled,
    JobFailed,
    JobNotFound,
    KeyReused,
    LimitReached,
    ModelDown,
    NotOnDisk,
    QueueDraining,
    QueueFull,
    QueueUnavailable,
    StorageFull,
    TasksError,
    UnknownModel,
)
from tasks.events import Failed, FailureCode, Unreadable
from tasks.jobs import Room
from tasks.limits import Allowance

log = logging.getLogger("rockchipllama.api")

CLIENT_GONE = 499
"""Nobody reads this status; it only stands in the log."""

_TWICE = re.compile(r"(/v1|/api)((?:/v1|/api)/.*)")
"""The path of a client whose base URL has a part that it adds itself."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal or failure, before any dialect.

    `code` is the word programs compare, `param` the field of the request at fault. `retry_after` is in seconds.
    `retry` tells clients that retry by status alone to do so, or not to; None leaves it to them.
    """

    status: int
    code: str | None
    message: str
    param: str | None = None
    retry_after: float | None = None
    retry: bool | None = None
    job: str | None = None
    allow: str | None = None
    """The methods a 405 names."""
    room: Room | None = None
    """Of the queue that is full."""
    allowance: Allowance | None = None
    """Of the client that has reached its limit."""
    close: bool = False
    """Nothing more can be read from this connection."""
    request: str | None = None
    """The id of the request it is the answer to, where that is known."""


class HttpProblem(Exception):
    """Raised by a route that cannot go on; the front renders its problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> HttpProblem:
    """The request says something wrong."""
    return HttpProblem(Problem(400, code, message, param))


def unsupported(param: str, message: str) -> HttpProblem:
    """The request asks for something this service does not do."""
    return HttpProblem(Problem(400, "unsupported_parameter", message, param))


@dataclass(frozen=True, slots=True)
class Rule:
    """How one kind of failure is answered; the fields are those of `Problem`."""

    status: int
    code: str
    param: str | None = None
    retry_after: float | None = None
    retry: bool | None = None


FAILURES: dict[FailureCode, Rule] = {
    FailureCode.CONTEXT_TOO_LONG: Rule(400, "context_length_exceeded"),
    FailureCode.BAD_PROMPT: Rule(400, "invalid_prompt"),
    FailureCode.ANSWER_TOO_LARGE: Rule(400, "answer_too_large"),
    FailureCode.UNSUPPORTED: Rule(400, "unsupported_parameter"),
    FailureCode.MODEL_UNAVAILABLE: Rule(503, "model_unavailable", retry_after=10.0),
    FailureCode.ENGINE_FAILED: Rule(500, "engine_failed"),
    # The engine is being started again meanwhile; the same request will usually pass.
    FailureCode.ENGINE_LOST: Rule(503, "engine_lost", retry_after=5.0),
    # Clients retry a 504 by themselves, which would queue once more what has just taken too long.
    FailureCode.DEADLINE: Rule(504, "deadline_exceeded", retry=False),
    FailureCode.UNREADABLE: Rule(500, "unreadable_record", retry=False),
    FailureCode.INTERNAL: Rule(500, "internal_error"),
}

ERRORS: dict[type[TasksError], Rule] = {
    UnknownModel: Rule(404, "model_not_found", param="model"),
    ModelDown: Rule(503, "model_unavailable"),
    QueueFull: Rule(429, "rate_limit_exceeded"),
    LimitReached: Rule(429, "rate_limit_exceeded"),
    QueueDraining: Rule(503, "queue_draining"),
    KeyReused: Rule(409, "idempotency_key_reused", param="idempotency-key", retry=False),
    StorageFull: Rule(507, "storage_full"),
    AnswerTooLarge: Rule(400, "answer_too_large"),
    AbilityMissing: Rule(400, "unsupported_model", param="model"),
    FieldRefused: Rule(400, "unsupported_parameter"),
    JobNotFound: Rule(404, "job_not_found"),
    JobCancelled: Rule(409, "job_cancelled", retry=False),
    BoardLives: Rule(409, "board_lives", param="board", retry=False),
    BoardUnknown: Rule(404, "board_not_found", param="board"),
    FileUnknown: Rule(404, "file_not_found", param="id"),
    BatchUnknown: Rule(404, "batch_not_found", param="id"),
    QueueUnavailable: Rule(503, "queue_unavailable"),
    NotOnDisk: Rule(503, "not_on_disk"),
    CommandFailed: Rule(502, "board_refused"),
}
"""Every leaf of the tree but `JobFailed`, whose failure is looked up in `FAILURES`."""

INTERNAL = Problem(
    500, "internal_error", "The server made an error while it answered this request. Its log says which."
)
CANCELLED = Problem(409, "job_cancelled", "The job was cancelled.", retry=False)
STOPPING = Problem(503, "server_stopping", "The server is shutting down.", retry_after=5.0)


def of_failed(failed: Failed, job: str | None = None) -> Problem:
    """The problem that a job's last event tells of."""
    rule = FAILURES[failed.code]
    return Problem(
        rule.status,
        rule.code,
        failed.message,
        param=failed.param or rule.param,
        retry_after=rule.retry_after,
        retry=rule.retry,
        job=job,
    )


def of_error(error: TasksError) -> Problem:
    """The problem that an error of the queue's client half tells of."""
    if isinstance(error, JobFailed):
        return of_failed(error.failed, error.job)
    for kind in type(error).__mro__:
        if kind in ERRORS:
            rule = ERRORS[kind]
            return Problem(
                rule.status,
                rule.code,
                str(error),
                param=getattr(error, "field", rule.param),
                retry_after=getattr(error, "retry_after", rule.retry_after),
                retry=rule.retry,
                room=getattr(error, "room", None),
                allowance=getattr(error, "allowance", None),
                job=getattr(error, "job", None),
            )
    return INTERNAL


def of_http(error: HTTPException, method: str, path: str, taken: Collection[str] = ()) -> Problem:
    """The problem behind a status that the router chose; `taken` are the methods that its routes take at this path."""
    match error.status_code:
        case 404:
            shown = path if len(path) <= 200 else path[:200] + "…"
            return Problem(404, "unknown_url", f"There is nothing at {method} {shown}. {_hint(path)}")
        case 405:
            # HEAD goes wherever GET does; the router knows nothing of it.
            allow = ", ".join(word for name in taken for word in ((name, "HEAD") if name == "GET" else (name,)))
            return Problem(405, "method_not_allowed", f"{method} is not allowed here; allowed: {allow}.", allow=allow)
        case status:
            return Problem(status, None, str(error.detail))


def _hint(path: str) -> str:
    """What to do about a path that is none."""
    twice = _TWICE.match(path)
    if twice is None:
        return "GET /docs lists what there is."
    return f"The client puts {twice[2][:100]} behind its base URL itself: leave '{twice[1]}' out of that."


def room_headers(room: Room) -> dict[str, str]:
    """How full a queue is, under the names that clients look at. A queue has no limit of tokens, so none is named."""
    return {
        "x-ratelimit-limit-requests": str(room.limit),
        "x-ratelimit-remaining-requests": str(room.left),
        "x-ratelimit-reset-requests": duration(room.empty_in),
    }


def allowance_headers(allowance: Allowance) -> dict[str, str]:
    """What is left to a client's API key, under the same names. Of two limits of requests, its own is the one it can mind."""
    return {
        name: value
        for what, bucket in (("requests", allowance.requests), ("tokens", allowance.tokens))
        if bucket is not None
        for name, value in (
            (f"x-ratelimit-limit-{what}", str(bucket.limit)),
            (f"x-ratelimit-remaining-{what}", str(bucket.left)),
            (f"x-ratelimit-reset-{what}", duration(bucket.full_in)),
        )
    }


def duration(seconds: float) -> str:
    """Such as 1h2m3s, 6m0s, 1.5s or 20ms: as Go writes it, and so the clients of OpenAI expect it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    words = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{words}{rest:.3f}".rstrip("0").rstrip(".") + "s"


def _taken(request: Request) -> list[str]:
    """The methods of all routes at this path. The router itself names those of the first one alone."""
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
    tried = {method: {**request.scope, "method": method} for method in methods}
    return [
        method
        for method, scope in tried.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


Renderer = Callable[[Problem], bytes]
"""A front's way to say a problem: the JSON body."""


def respond(problem: Problem, render: Renderer) -> Response:
    """The whole answer for a problem, with the headers that tell clients when to come again."""
    headers: dict[str, str] = {}
    if problem.retry_after is not None:
        # At most a minute: clients give up on longer waits instead of keeping them.
        seconds = min(60.0, max(0.0, problem.retry_after))
        headers["retry-after"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
    if problem.retry is not None:
        headers["x-should-retry"] = "true" if problem.retry else "false"
    if problem.job is not None:
        headers["x-job-id"] = problem.job
    if problem.room is not None:
        headers |= room_headers(problem.room)
    if problem.allowance is not None:
        headers |= allowance_headers(problem.allowance)
    if problem.allow is not None:
        headers["allow"] = problem.allow
    if problem.close:
        headers["connection"] = "close"
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(render(problem), problem.status, headers, media_type="application/json")


def register(app: FastAPI, renderer_of: Callable[[Scope], Renderer]) -> None:
    """Answer every exception a route may raise; what is not named here ends in `RequestLog` as a 500."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, HttpProblem)
        return respond(error.problem, renderer_of(request.scope))

    async def tasks_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, TasksError)
        if isinstance(error, QueueUnavailable):
            # It may name addresses, so it is not for the client.
            log.warning("a request was refused without the queue: %s", error.detail)
        return respond(of_error(error), renderer_of(request.scope))

    async def unreadable(request: Request, error: Exception) -> Response:
        return respond(of_failed(Failed(FailureCode.UNREADABLE, str(error))), renderer_of(request.scope))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        taken = _taken(request) if error.status_code == 405 else ()
        return respond(of_http(error, request.method, request.url.path, taken), renderer_of(request.scope))

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return respond(invalid(f"Invalid '{where}': {fault_of(first)}.", where).problem, renderer_of(request.scope))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(HttpProblem, problem)
    app.add_exception_handler(TasksError, tasks_error)
    app.add_exception_handler(Unreadable, unreadable)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(ClientDisconnect, gone)
