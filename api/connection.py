"""One client's connection: HTTP as uvicorn parses it, with an end to how long and how large what comes in may be.

A body is the route's to wait for (`api.body`), which can answer in its own words. Here is what no route sees: a head that
does not come whole, the rest of a body whose answer has been sent already, and more connections than the process holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.errors import Problem, respond
from api.fronts import Front
from api.request_log import PROBES, RequestLog, new_request_id
from api.settings import ApiSettings
from tasks.settings import PREFIX

log = logging.getLogger("rockchipllama.api")

MAX_HEAD = 65_536
"""Bytes of a request's first line and headers, and of what may stand around the chunks of its body; the parser itself
would gather them without end."""
MAX_BEHIND = 65_536
"""Bytes of further requests that may come behind one that is still being answered."""
LINGER = 30.0
"""Seconds for the rest of a body whose answer has been sent. Closing at once would reset the connection, and the client
might lose the answer."""
CROWD = 64
"""Connections beyond the bound that are still told so; more are closed without a word."""


def crowded(
    app: ASGIApp, front_of: Callable[[Scope], Front], limit: int, count: Callable[[Scope, int], None]
) -> ASGIApp:
    """What answers a connection beyond the `limit`: probes rightly, everything else with a refusal, which is counted."""
    problem = Problem(
        503,
        "too_many_connections",
        f"This server has {limit} connections open, the most it holds. Close those that are not needed, try again, or "
        f"raise {PREFIX}MAX_CONNECTIONS.",
        retry_after=5.0,
        close=True,
    )

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(problem, front_of(scope).render)(scope, receive, send)

    refusing = RequestLog(refuse, front_of, count)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["path"] in PROBES else refusing)(scope, receive, send)

    return answer


class BoundedHttp(HttpToolsProtocol):
    """One connection. `front` says what is wrong with a head, whose path may never have come; `crowded` answers when there
    are too many connections."""

    def __init__(self, *args: Any, settings: ApiSettings, front: Front, crowded: ASGIApp, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._front = front
        self._crowded = crowded
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._dry_bytes = 0
        """Bytes since something of the body itself was among them."""
        self._answered: RequestResponseCycle | None = None
        """The request that is or was answered last; `cycle` is the newest one, which may wait behind it."""
        self._behind_bytes = 0
        self._overrun = False
        """More came behind it than is kept: its answer is the last one here."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        limit = self._settings.max_connections
        if len(self.connections) > limit + CROWD:
            log.warning("a connection was closed at once", extra={"open": len(self.connections) - 1})
            transport.abort()
        elif len(self.connections) > limit:
            self.app = self._crowded
        self._set_timer(self._settings.head_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._unset_timer()
        self._disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived.

        Requests behind one that is being answered wait for their turn. The line is read meanwhile, for nothing else shows
        that the client is gone; so what waits is bounded here and not by leaving it unread, as uvicorn does.
        """
        if self._overrun:
            return
        self._behind_bytes = self._behind_bytes + len(data) if self.pipeline else 0
        if self._behind_bytes > MAX_BEHIND:
            self._overrun = True
            self._unset_timer()
            self.pipeline.clear()
            if self._answered is not None:
                self._answered.keep_alive = False
            return
        if self._in_body:
            self._dry_bytes += len(data)
        elif not self._in_head:
            # Also when it is nothing but the empty lines that a parser skips.
            self._in_head = True
            self._head_bytes = 0
        if self._in_head:
            self._head_bytes += len(data)
        if max(self._head_bytes - len(data), self._dry_bytes - len(data)) > MAX_HEAD:
            self._refuse(
                Problem(
                    400, "headers_too_large", f"The request's headers are larger than {MAX_HEAD} bytes.", close=True
                )
            )
            return
        super().data_received(data)
        if self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()
        if self._in_head and self._timer is None:
            self._set_timer(self._settings.head_timeout, self._head_is_late)

    def on_message_begin(self) -> None:
        """A request's first byte was seen."""
        self._in_head = True
        self._head_bytes = 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head was seen whole."""
        self._in_head = False
        self._in_body = True
        self._head_bytes = self._dry_bytes = 0
        self._unset_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Something of a request's body was seen."""
        self._dry_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request was seen whole."""
        self._in_body = False
        self._dry_bytes = 0
        self._unset_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request's answer was sent whole."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete:
            self._set_timer(LINGER, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(
            Problem(400, "invalid_http", f"{msg} This is plain HTTP/1.1: write http://, not https://.", close=True)
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._answered = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def _disconnect(self) -> None:
        """Nobody is there for the request that is being answered, and none waits behind it any more."""
        self.pipeline.clear()
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _head_is_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # It came behind a request that is still being answered, which must not suffer from it.
            self._set_timer(self._settings.head_timeout, self._head_is_late)
        elif not self._head_bytes:
            self.transport.close()
        else:
            seconds = f"{self._settings.head_timeout:g}"
            self._refuse(
                Problem(
                    408,
                    "request_timeout",
                    f"The request's headers did not arrive within {seconds} s. Send them at once.",
                    close=True,
                )
            )

    def _refuse(self, problem: Problem) -> None:
        cycle = self._answered
        if cycle is not None and not cycle.response_complete:
            of_another = self._in_head or cycle is not self.cycle
            self._disconnect()
            if of_another or cycle.response_started:
                # What is on the line belongs to another request, or is an answer that has begun.
                self.transport.close()
                return
        name = new_request_id()
        log.info("%d: %s", problem.status, problem.message, extra={"request": name})
        reply = respond(problem, self._front.render)
        headers = [
            *self.server_state.default_headers,
            *reply.raw_headers,
            (b"x-request-id", name.encode()),
            *self._front.headers,
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + bytes(reply.body))
        self.transport.close()

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._unset_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
