"""One line in the log for each request, its id and timing on each answer, and the last net below every exception."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import CLIENT_GONE, INTERNAL, respond
from api.fronts import Front

log = logging.getLogger("rockchipllama.api")

PROBES = frozenset({"/healthz", "/readyz", "/health", "/v1/health"})
"""Asked every few seconds by machines; logged at level debug only."""

REQUEST = "rockchipllama.request"
"""Under this name the scope carries the request's id."""

_SANE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id(scope: Scope) -> str:
    """The client's own id for the request if it sent a sane one, else a new one."""
    for name, value in scope["headers"]:
        if name in (b"x-request-id", b"x-client-request-id") and _SANE.fullmatch(value):
            return str(value, "ascii")
    return new_request_id()


def new_request_id() -> str:
    """An id that no other request has."""
    return "req_" + secrets.token_hex(12)


class RequestLog:
    """ASGI middleware around everything else, which `count`s requests by their statuses. Looks at sizes, never at contents."""

    def __init__(self, app: ASGIApp, front_of: Callable[[Scope], Front], count: Callable[[Scope, int], None]) -> None:
        self.app = app
        self.count = count
        self.front_of = front_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.front_of(scope))
        scope[REQUEST] = exchange.id
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("an unexpected error", extra={"request": exchange.id})
            if not exchange.started:
                problem = replace(INTERNAL, request=exchange.id)
                await respond(problem, exchange.front.render)(scope, receive, exchange.send)
        finally:
            exchange.write_line()
            self.count(scope, exchange.outcome)


class _Exchange:
    """One request and its answer, counted."""

    __slots__ = (
        "_receive",
        "_send",
        "began",
        "bytes_in",
        "bytes_out",
        "ended",
        "first",
        "front",
        "id",
        "job",
        "left",
        "scope",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, front: Front) -> None:
        self.began = perf_counter()
        self.first = 0.0
        self.scope = scope
        self._receive = receive
        self._send = send
        self.front = front
        self.id = request_id(scope)
        self.job: str | None = None
        self.status = 0
        self.bytes_in = self.bytes_out = 0
        self.ended = self.left = False

    @property
    def started(self) -> bool:
        return self.status != 0

    @property
    def outcome(self) -> int:
        """The status, or that the client left before the answer was whole."""
        return CLIENT_GONE if self.left or not self.ended else self.status

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        elif not self.ended:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self._begin(message)
        await self._send(message)

    def _begin(self, message: Message) -> None:
        self.first = perf_counter() - self.began
        self.status = message["status"] = self.front.statuses.get(message["status"], message["status"])
        headers = message["headers"] = list(message.get("headers", ()))
        for name, value in headers:
            if name == b"x-job-id":
                self.job = str(value, "ascii")
        headers.append((b"x-request-id", self.id.encode()))
        headers += self.front.headers
        headers += [(self.front.echoes[name], value) for name, value in headers if name in self.front.echoes]
        if self.front.elapsed_header is not None:
            headers.append((self.front.elapsed_header, b"%d" % (self.first * 1000)))

    def write_line(self) -> None:
        path: str = self.scope["path"]
        level = logging.DEBUG if path in PROBES else logging.INFO
        if not log.isEnabledFor(level):
            return
        log.log(
            level,
            "%s %s %d",
            self.scope["method"],
            path if len(path) <= 200 else path[:200] + "…",
            self.outcome,
            extra={
                "job": self.job,
                "request": self.id,
                "in": self.bytes_in,
                "out": self.bytes_out,
                "first_ms": round(self.first * 1000, 1),
                "total_ms": round((perf_counter() - self.began) * 1000, 1),
            },
        )
