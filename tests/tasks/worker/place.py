"""A worker's child in the process of its tests, and the engines that these hold up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from npu.engine import TextEngine
from npu.engines.echo import EchoEngine
from npu.model import Model
from tasks import keys
from tasks.connection import connect, connect_async
from tasks.events import TextDelta
from tasks.jobs import JobState, JobView, Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.settings import TaskSettings
from tasks.store import JobStore
from tasks.worker import serving, slot
from tasks.worker.job_run import JobRun
from tasks.worker.serving import Serving
from tasks.worker.settings import WorkerSettings
from tests.fakes import engines
from tests.record import read_events
from tests.stack import LIMIT, eventually

WORKER = "echo@one"


class Place:
    """A worker's child in this process, with an engine that a test holds up, and the jobs it serves."""

    def __init__(
        self, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, board: str = "one", **settings: float
    ) -> None:
        self.url = url
        self.worker = f"echo@{board}"
        self.client = connect(url)
        self.model = Model(id="echo", engine="echo", folder=folder)
        self.loaded = 0
        self.gate = threading.Event()
        self.gate.set()
        self.engine: Callable[[], TextEngine] = lambda: EchoEngine(self.model)
        monkeypatch.setattr(slot, "open_engine", self._open)
        monkeypatch.setattr(serving, "NEXT", 0.0)  # each call of a test is a call of its own
        lease = settings.pop("lease", 60.0)
        record_limit = int(settings.pop("record_limit", 10**9))
        self.serving = Serving(
            self.client,
            self.model,
            self.worker,
            board,
            TaskSettings(data_dir=folder, models_dir=folder, lease=lease, record_limit=record_limit),
            WorkerSettings(**settings),
        )
        eventually(lambda: self.client.pubsub_numsub(keys.control(self.worker))[0][1] == 1, what="a listener")
        self.outcomes: list[str] = []
        self._threads: list[threading.Thread] = []

    @property
    def run(self) -> JobRun | None:
        """The job in hand."""
        return next(iter(self.serving._runs), None)

    def _open(self, *_: object) -> TextEngine:
        assert self.gate.wait(LIMIT)
        self.loaded += 1
        return self.engine()

    def accept(self, text: str = "hello", lane: Lane = Lane.INTERACTIVE, owner: str = "") -> str:
        job = new_job_id()

        async def send() -> None:
            aclient = connect_async(self.url)
            store = JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)
            await store.accept(job, "echo", ChatRequest((Message("user", text),)), lane=lane, owner=owner)
            await aclient.aclose()

        asyncio.run(send())
        return job

    def cancel(self, job: str) -> None:
        async def send() -> None:
            aclient = connect_async(self.url)
            await JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600).cancel(job, "test")
            await aclient.aclose()

        asyncio.run(send())

    def view(self, job: str) -> JobView:
        async def look() -> JobView:
            aclient = connect_async(self.url)
            found = await JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600).view(job)
            await aclient.aclose()
            return found

        return asyncio.run(look())

    def text(self, job: str) -> str:
        async def read() -> str:
            aclient = connect_async(self.url)
            events = [item.event for item in await read_events(aclient, job)]
            await aclient.aclose()
            return "".join(event.text for event in events if isinstance(event, TextDelta))

        return asyncio.run(read())

    def until(self, job: str, state: JobState) -> JobView:
        eventually(lambda: self.view(job).state is state, what=f"{state} of {job}")
        return self.view(job)

    def call(self) -> threading.Thread:
        """Serve a call in a thread, as Celery has the child do."""
        thread = threading.Thread(target=lambda: self.outcomes.append(self.serving.serve("a call")), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def close(self) -> None:
        self.gate.set()
        self.serving.close()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()


Make = Callable[..., Place]


class Talker:
    """An engine that says a word each time it is let."""

    def __init__(self) -> None:
        self.said = threading.Semaphore(0)
        self.engine = engines.ScriptedEngine(self._script)

    def _script(self, aborted: threading.Event) -> Iterator[bytes]:
        for letter in b"abcdef":
            while not self.said.acquire(timeout=0.01):
                if aborted.is_set():
                    return
            yield bytes((letter,))

    def say(self, count: int) -> None:
        self.said.release(count)


def talking(place: Place) -> Talker:
    talker = Talker()
    place.engine = lambda: talker.engine
    return talker
