"""The HTTP server around the application, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.app import FRONTS, create_app
from api.auth import check_bind
from api.connection import BoundedHttp, crowded
from api.drain import Drain
from api.fronts import front_of
from api.settings import ApiSettings
from tasks import systemd

log = logging.getLogger("rockchipllama.api")

SPARE_FILES = 256
"""Files a process has open besides its clients' connections, with room for those that are only told to go."""
KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than the minute after which most proxies and clients drop theirs."""
LOOK = 1.0
"""Seconds between two looks of the server at its own state; the `date` header of answers is as fine as that."""
FAREWELL = 2.0
"""Seconds for the last words of answers that the drain has ended."""


def serve(
    settings: ApiSettings,
    sockets: list[socket.socket] | None = None,
    app: FastAPI | None = None,
    *,
    keys: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then let open answers finish for `settings.drain` seconds.

    `sockets` are bound already; without them one is bound to the settings' host and port. `keys`: some were made. Raises
    `BindRefused` when that would open the API to everybody, and `OSError` when the port is taken.
    """
    check_bind(settings, keys=keys)
    sockets = sockets if sockets is not None else [bind(settings.host, settings.port)]
    with _surviving_signals():
        server(settings, app or create_app(settings)).run(sockets=sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address, ready to listen. Raises `OSError`."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def server(settings: ApiSettings, app: FastAPI) -> Server:
    """The server, not yet running."""
    settings = _within_open_files(settings)
    overfull = crowded(app, lambda scope: front_of(scope, FRONTS), settings.max_connections, app.state.requests.count)
    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http=partial(BoundedHttp, settings=settings, front=FRONTS[0], crowded=overfull),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # A header that anybody can send must not decide who is in a trusted network.
            proxy_headers=False,
            workers=1,
            backlog=2048,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(settings.drain + FAREWELL) + 5,
        ),
        app.state.drain,
        settings.drain,
    )


def _within_open_files(settings: ApiSettings) -> ApiSettings:
    """As many connections as the settings say, or as this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return settings
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed == needed:
        return settings
    fewer = max(1, allowed - SPARE_FILES)
    log.warning("at most %d connections, for this process may not open more files (`ulimit -n`)", fewer)
    return settings.model_copy(update={"max_connections": fewer})


class Server(uvicorn.Server):
    """Stops in order: no new connections, open answers to their end, those still open after the grace with a word."""

    def __init__(self, config: uvicorn.Config, drain: Drain, grace: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._grace = grace
        self._told = asyncio.Event()
        self._pulse = systemd.Pulse()

    async def main_loop(self) -> None:
        """Wait until told to stop. The library's own loop wakes ten times a second, all day long."""
        loop = asyncio.get_running_loop()
        systemd.tell("READY=1")
        while not await self.on_tick(0):
            self._pulse.beat()
            timer = loop.call_later(LOOK, self._told.set)
            await self._told.wait()
            self._told.clear()
            timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come; the loop must not sleep on."""
        super().handle_exit(sig, frame)
        self._told.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, in that order."""
        longest = self.config.timeout_graceful_shutdown or 0
        systemd.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={(longest + 5) * 1_000_000}")
        ending = asyncio.ensure_future(self._end_after_grace())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            if self.force_exit:
                # Somebody pressed Ctrl-C twice. The connections go at once, but the jobs behind them must not run on.
                await self._drain.abandon()

    async def _end_after_grace(self) -> None:
        if self._drain:
            log.info("waiting for open answers", extra={"open": len(self._drain), "seconds": self._grace})
        await asyncio.sleep(self._grace)
        self._drain.end()
        await asyncio.sleep(FAREWELL)
        self._drain.cut.set()


@contextmanager
def _surviving_signals() -> Iterator[None]:
    # When it has stopped, uvicorn raises the signal once more for whoever was there before it. By default that kills
    # the process, and the caller's own cleaning up with it.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
