"""The real application on a real socket, over services that a test may script."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from api.app import create_app
from api.blobs import Blobs
from api.loading import Loading
from api.needs import Services
from api.runtimes import Runtimes
from api.server import Server, bind, server
from api.settings import ApiSettings
from api.storage import LocalStorage
from tasks.batch import BatchBook
from tasks.connection import connect_async
from tasks.errors import QueueUnavailable
from tasks.files import FileBook
from tasks.live_settings import LiveSettings
from tasks.settings import TaskSettings
from tests.api.scripted import ScriptedRelay
from tests.api.scripted_services import (
    Nobody,
    ScriptedBatches,
    ScriptedBoards,
    ScriptedCommander,
    ScriptedJobs,
    ScriptedKeys,
    ScriptedQueues,
    ScriptedRoster,
    ScriptedSettings,
    ScriptedShelf,
    ScriptedTexts,
)
from tests.stack import LIMIT


class World:
    """Everything a test may script."""

    def __init__(self) -> None:
        self.relay = ScriptedRelay()
        self.roster = ScriptedRoster()
        self.jobs = ScriptedJobs()
        self.queues = ScriptedQueues()
        self.boards = ScriptedBoards()
        self.api_keys = ScriptedKeys()
        # Nobody is there to keep files; tests of those have a `RealWorld`.
        self.files = FileBook(connect_async("unix:///nowhere"))
        self.storage = LocalStorage(Path("/nowhere"))
        self.batches: BatchBook = ScriptedBatches()
        self.feeding = Nobody()
        self.texts = ScriptedTexts()
        self.shelf = ScriptedShelf()
        self.commander = ScriptedCommander()
        self.blobs = Blobs(Path("/nowhere"))
        self.redis_down = False

    async def ping(self) -> None:
        if self.redis_down:
            raise QueueUnavailable("connection refused")

    def app(self, settings: ApiSettings) -> FastAPI:
        """The real application over this world."""

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Services]:
            yield {
                "relay": self.relay,
                "roster": self.roster,
                "jobs": self.jobs,
                "queues": self.queues,
                "boards": self.boards,
                "api_keys": self.api_keys,
                "settings": ScriptedSettings(LiveSettings(TaskSettings()), app.state.settings),
                "files": self.files,
                "storage": self.storage,
                "batches": self.batches,
                "feeding": self.feeding,
                "texts": self.texts,
                "shelf": self.shelf,
                "loading": Loading(self.roster, self.commander),
                "runtimes": Runtimes(self.roster, self.commander),
                "blobs": self.blobs,
                "ping": self.ping,
            }

        return create_app(settings, lifespan=lifespan)


class RealWorld(World):
    """No script: the application's own services, over a Redis."""

    def __init__(self, queue: TaskSettings) -> None:
        super().__init__()
        self.queue = queue

    def app(self, settings: ApiSettings) -> FastAPI:
        """The real application, as it is started by `rockchipllama api`."""
        return create_app(settings, self.queue)


class Site:
    """A running server."""

    def __init__(self, world: World, port: int, running: Server, app: FastAPI) -> None:
        self.world = world
        self.relay = world.relay
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.server = running
        self.app = app
        self.http = httpx.Client(base_url=self.url, timeout=LIMIT)


@contextmanager
def site(world: World | None = None, **settings: Any) -> Iterator[Site]:
    """The application under the real server, on a free port of loopback."""
    world = world or World()
    known = ApiSettings(**settings)
    sock = bind("127.0.0.1", 0)
    # Connections wait here until the server takes them, so nobody need ask whether it has started.
    sock.listen(128)
    app = world.app(known)
    running = server(known, app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, name="server")
    thread.start()
    place = Site(world, sock.getsockname()[1], running, app)
    try:
        yield place
    finally:
        place.http.close()
        running.should_exit = True
        thread.join(LIMIT)
        assert not thread.is_alive(), "the server did not stop"


class RequestLines(logging.Handler):
    """The log of the API as it is written, by the server's own thread."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.Queue[logging.LogRecord] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.put(record)

    def next(self, request: str) -> logging.LogRecord:
        """The next entry about the request of that id, waited for."""
        while True:
            record = self._records.get(timeout=LIMIT)
            if getattr(record, "request", None) == request:
                return record
