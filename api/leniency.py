"""What clients get slightly wrong: slashes too many in a path, and HEAD where there is only GET."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SLASHES = re.compile("//+")


class Leniency:
    """ASGI middleware that answers both as if they had been asked rightly, without a redirect.

    A redirect would make clients drop the body of a POST.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        if len(path) > 1 and (path[-1] == "/" or "//" in path):
            scope = {**scope, "path": _SLASHES.sub("/", path).rstrip("/") or "/"}
        if scope["method"] == "HEAD":
            # A copy: the server goes by its own scope when it leaves out the body.
            scope = {**scope, "method": "GET"}
            send = _without_body(send)
        await self.app(scope, receive, send)


def _without_body(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return wrapped
