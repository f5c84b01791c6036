"""Rendered events on the wire as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from api.drain import Drain, close
from api.errors import INTERNAL, Problem, of_error, of_failed
from api.relay import Answer, Waiting
from tasks.errors import QueueUnavailable, TasksError
from tasks.events import Event, Failed, Finished, FinishReason

log = logging.getLogger("rockchipllama.api")
# At level debug the library logs each chunk it sends, which is the answer itself.
logging.getLogger("sse_starlette.sse").setLevel(logging.INFO)

KEEP_ALIVE = b": keep-alive\n\n"


class Writer(Protocol):
    """A front's way to say one answer in frames: whole `data:` lines with the empty line behind them."""

    def event(self, event: Event) -> bytes:
        """The frames for one event, b"" for none. Never asked about a failed or cancelled end."""

    def problem(self, problem: Problem) -> bytes:
        """The frames that end a stream which cannot go on."""


def comment(waiting: Waiting) -> bytes:
    """A line that every reader skips, and that keeps proxies and clients from giving up."""
    return KEEP_ALIVE if waiting.position is None else b": position %d\n\n" % waiting.position


async def frames(answer: Answer, writer: Writer, drain: Drain) -> AsyncIterator[bytes]:
    """The answer as frames. Past the first byte a failure is a frame, too: the status has been sent."""
    try:
        async for event in answer:
            match event:
                case Waiting():
                    yield comment(event)
                case Failed():
                    yield writer.problem(of_failed(event))
                    return
                case Finished(reason=FinishReason.CANCELLED):
                    yield writer.problem(drain.cancelled())
                    return
                case _:
                    if data := writer.event(event):
                        yield data
                    if type(event) is Finished:
                        return
    except TasksError as error:
        if isinstance(error, QueueUnavailable):
            log.warning("an answer was lost with the queue: %s", error.detail, extra={"job": answer.job})
        yield writer.problem(of_error(error))
    except Exception:
        log.exception("an answer broke off", extra={"job": answer.job})
        yield writer.problem(INTERNAL)
    else:
        log.error("an answer ended without its last event", extra={"job": answer.job})
        yield writer.problem(INTERNAL)


class AnswerStream(EventSourceResponse):
    """An answer streamed to one client, and closed in every case: at its end, when the client leaves, stalls or
    was gone before the first byte, and when the server stops."""

    def __init__(
        self, answer: Answer, writer: Writer, drain: Drain, *, headers: Mapping[str, str], stalled: float
    ) -> None:
        """`stalled` is how many seconds a client may leave the stream unread."""
        self.answer = answer
        self.drain = drain
        super().__init__(
            frames(answer, writer, drain),
            headers={"cache-control": "no-cache", **headers},
            # The relay says when the line has been silent for long, and where the job stands.
            ping=0,
            send_timeout=stalled,
        )
        self._stalled = stalled
        # The library's own `keep-alive` would contradict the server's `close` while it shuts down.
        del self.headers["connection"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self.drain.holding(self.answer):
                await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.warning("a client stopped reading its stream", extra={"job": self.answer.job})
        finally:
            await close(self.answer)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        # The library's own goes through a cancel scope of anyio, which is a tenth of a token's way through this process.
        try:
            async with asyncio.timeout(self._stalled):
                await send(message)
        except TimeoutError as error:
            raise SendTimeoutError from error
