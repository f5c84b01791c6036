"""A relay, a roster and jobs that do what a test has written down, behind the real application on a real socket."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import msgspec
from fastapi import FastAPI
from starlette.requests import Request as HttpRequest

from api.answer import Answer, ClientGone, Stopped, Waiting
from api.app import create_app
from api.blobs import Blobs
from api.loading import Loading
from api.needs import Services
from api.relay import Relay
from api.runtimes import Runtimes
from api.server import Server, bind, server
from api.settings import ApiSettings
from api.storage import LocalStorage
from tasks.api_keys import ApiKey, KeyRefused, Scope, digest_of
from tasks.asking import Commander
from tasks.batch import BatchBook, Progress
from tasks.card import Card
from tasks.commands import Command, Copy, Create, Delete, PullProgress
from tasks.connection import connect_async
from tasks.counts import Counts
from tasks.errors import BoardUnknown, JobNotFound, QueueUnavailable, UnknownModel
from tasks.events import (
    ChoiceEnded,
    Event,
    Finished,
    FinishReason,
    Mark,
    Numbered,
    Queued,
    Started,
    TextDelta,
    Timings,
    Usage,
    number,
)
from tasks.files import FileBook
from tasks.job_records import JobAnswer, KeptJob, Page
from tasks.jobs import JobState, JobView, Kept, Lane, Once, Rendering, Room, job_id_of
from tasks.limits import Allowance, Bucket, Limits
from tasks.live_settings import LiveSettings, SettingsBook
from tasks.presence import Presence
from tasks.queue_book import Held, QueueView
from tasks.requests import Request
from tasks.roster import ModelStatus, Snapshot
from tasks.settings import TaskSettings
from tasks.standing import Gate, Standing
from tasks.store import Attended
from tests.stack import LIMIT

JOB = "abcdefghijklmnopqrstuv"
USAGE = Usage(prompt_tokens=12, completion_tokens=3, cached_tokens=4)
TIMINGS = Timings(queued_ms=1.5, load_ms=0.0, prefill_ms=20.0, decode_ms=60.0)
END = Finished(FinishReason.STOP, USAGE, TIMINGS)
CANCELLED = Finished(FinishReason.CANCELLED, USAGE, TIMINGS)


class Hold:
    """A step of a script: silence until the answer is stopped or closed."""


class StartHolds:
    """A first step: `Relay.start` itself does not return."""


Step: TypeAlias = Event | Waiting | Exception | Hold | StartHolds


def hello(choice: int = 0, reason: FinishReason = FinishReason.STOP) -> list[Step]:
    """A short answer."""
    return [
        Queued(),
        Started("w", "b"),
        TextDelta("Hel", choice),
        TextDelta("lo", choice),
        ChoiceEnded(choice, reason),
        END,
    ]


class ScriptedAnswer(Answer):
    """Plays a script. `closed` is set once somebody has closed it, however often."""

    def __init__(self, model: str, script: list[Step], waiting: Waiting | None = None) -> None:
        self.known = False
        self.rendering: Rendering | None = None
        self.grace = 0.0
        self.job = JOB
        self.model = model
        self.waiting = waiting
        self.tools_left_out = 0
        self.room = Room(limit=64, left=61, empty_in=6.25)
        self.allowance: Allowance | None = None
        self.script = script
        self.reached = threading.Event()
        self.closed = threading.Event()
        self._closing = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Numbered | Waiting]:
        seq = 0
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Hold):
                self.reached.set()
                await self._closing.wait()
                raise Stopped
            assert not isinstance(step, StartHolds)
            if isinstance(step, Waiting):
                yield step
            else:
                seq += 1
                yield Numbered(seq, step)

    async def events(self, http: HttpRequest) -> list[Event]:
        collecting = asyncio.ensure_future(self._collect())
        leaving = asyncio.ensure_future(_left(http))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                await self.close()
                raise ClientGone
            return collecting.result()
        finally:
            collecting.cancel()
            leaving.cancel()

    async def _collect(self) -> list[Event]:
        return [item.event async for item in self if not isinstance(item, Waiting)]

    def stop(self) -> None:
        self._closing.set()

    async def close(self) -> None:
        self._closing.set()
        self.closed.set()


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


@dataclass
class Asked:
    """One call of `Relay.start`."""

    model: str | None
    request: Request
    commit_early: bool
    owner: str
    lane: Lane
    grace: float
    kept: Kept | None
    attended: bool
    webhook: str | None
    once: Once | None
    limits: Limits | None


class ScriptedRelay(Relay):
    """Answers each request with the script that was set, and remembers what it was asked."""

    def __init__(self) -> None:
        self.script: list[Step] = hello()
        self.speaker: Callable[[Request], Iterable[Event]] | None = None
        self.refusal: Exception | None = None
        self.waiting: Waiting | None = None
        self.rendering: Rendering | None = None
        self.read: Mark | None = None
        self.calls: list[Asked] = []
        self.told: list[tuple[Any, ...]] = []
        """What boards were told to do, in words."""
        self.answers: list[ScriptedAnswer] = []
        self.holding = threading.Event()
        self.start_cancelled = threading.Event()
        self.answered = threading.Semaphore(0)

    def play(self, *script: Step, waiting: Waiting | None = None) -> None:
        """Answer with this script from now on."""
        self.script = list(script)
        self.speaker = None
        self.refusal = None
        self.waiting = waiting
        self.calls.clear()
        self.told.clear()
        self.answers.clear()
        self.answered = threading.Semaphore(0)
        self.holding.clear()
        self.start_cancelled.clear()

    def speak(self, speaker: Callable[[Request], Iterable[Event]]) -> None:
        """Answer each request with what `speaker` makes of it from now on."""
        self.play()
        self.speaker = speaker

    def refuse(self, error: Exception) -> None:
        """Refuse with this error from now on."""
        self.play()
        self.refusal = error

    def answer(self) -> ScriptedAnswer:
        """The next answer that was begun, waited for."""
        assert self.answered.acquire(timeout=LIMIT), "no request reached the relay"
        return self.answers[-1]

    async def start(
        self,
        model: str | None,
        request: Request,
        *,
        commit_early: bool,
        owner: str = "",
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
        grace: float = 0.0,
        rendering: Callable[[str, ModelStatus], Rendering] | None = None,
        kept: Kept | None = None,
        attended: bool = True,
        webhook: str | None = None,
        once: Once | None = None,
        limits: Limits | None = None,
        for_model: Callable[[ModelStatus, Request], Request] | None = None,
    ) -> Answer:
        if for_model is not None:
            request = for_model(TINY, request)
        self.calls.append(
            Asked(model, request, commit_early, owner, lane, grace, kept, attended, webhook, once, limits)
        )
        if self.refusal is not None:
            raise self.refusal
        if self.script and isinstance(self.script[0], StartHolds):
            try:
                self.holding.set()
                await asyncio.Event().wait()
            finally:
                self.start_cancelled.set()
        script: list[Step] = list(self.script)
        if self.speaker is not None:
            script = [*await asyncio.to_thread(list, self.speaker(request))]
        answer = ScriptedAnswer("tiny", script, self.waiting)
        answer.grace = grace
        if limits is not None and limits.requests is not None:
            answer.allowance = Allowance(Bucket(limits.requests, limits.requests - 1, 1.0), None)
        if rendering is not None:
            answer.rendering = self.rendering = rendering(JOB, TINY)
        self.answers.append(answer)
        self.answered.release()
        return answer

    async def load(self, status: ModelStatus) -> None:
        self.told.append(("load", status.card.id))

    def keep(self, status: ModelStatus, seconds: float) -> None:
        self.told.append(("keep", status.card.id, seconds))

    async def unload(self, model: str) -> None:
        self.told.append(("unload", model))

    async def resume(self, job: str, read: Mark | None = None) -> tuple[Answer, Attended]:
        if job != JOB:
            raise JobNotFound(job)
        self.read = read
        answer = ScriptedAnswer("tiny", list(self.script))
        answer.known = True
        answer.rendering = self.rendering
        self.answers.append(answer)
        self.answered.release()
        seq = sum(not isinstance(step, Waiting | Hold) for step in self.script)
        return answer, Attended("tiny", "tiny", Mark(seq, 0), END in self.script, 0.0, self.rendering)


CARD = Card(
    id="tiny",
    board="b",
    names=("tiny:latest", "org/tiny"),
    engine="echo",
    engine_version="1",
    context_length=2048,
    created=1700000000,
    size_bytes=1000,
    family="echo",
    parameters="1M",
    quantization="none",
)
TINY = ModelStatus(card=CARD, served=True, loaded=True, loading=False, waiting=0)


class ScriptedRoster:
    """Knows what a test says."""

    def __init__(self) -> None:
        self.known = [TINY]
        self.alive: list[Presence] = []
        self.cards: list[Card] = []
        self.away = False
        self.refreshed: Callable[[], None] | None = None
        """Called when the roster is looked at anew."""

    async def refresh(self) -> None:
        if self.away:
            raise QueueUnavailable("gone")
        if self.refreshed is not None:
            self.refreshed()

    @property
    def snapshot(self) -> Snapshot:
        boards = tuple(breath for breath in self.alive if breath.model is None)
        return Snapshot(
            time.monotonic(), tuple(self.known), tuple(self.alive), (), breaths=boards, cards=tuple(self.cards)
        )

    def models(self) -> list[ModelStatus]:
        return list(self.known)

    def workers(self, model: str) -> list[Presence]:
        return [worker for worker in self.alive if worker.model == model]

    def resolve(self, name: str | None) -> ModelStatus:
        for status in self.known:
            if name in (None, status.card.id, *status.card.names):
                return status
        raise UnknownModel(name or "", "tiny")

    async def find(self, name: str | None) -> ModelStatus:
        await self.refresh()
        return self.resolve(name)


class ScriptedJobs:
    """Holds one job."""

    def __init__(self) -> None:
        self.job = view()
        self.said: tuple[Event, ...] = ()
        self.rendering: Rendering | None = None
        self.next: JobView | None = None
        self.waits: list[float] = []
        self.stored: dict[str, KeptJob] = {}
        self.ended: Callable[[], None] = lambda: None

    async def kept(self, job: str) -> KeptJob:
        if job not in self.stored:
            raise JobNotFound(job)
        return self.stored[job]

    async def id_of(self, owner: str, key: str) -> str:
        return job_id_of(f"{owner}/{key}")

    async def has(self, once: Once) -> bool:
        return False

    async def answer(self, job: str) -> JobAnswer:
        await self.view(job)
        return JobAnswer(self.rendering, self.job.state, self.said)

    async def forget(self, job: str) -> None:
        if self.stored.pop(job, None) is None:
            raise JobNotFound(job)

    async def view(self, job: str) -> JobView:
        if job != self.job.id:
            raise JobNotFound(job)
        return self.job

    async def wait(self, job: str, known: JobView, seconds: float) -> JobView:
        self.waits.append(seconds)
        return self.next or known

    async def cancel(self, job: str) -> JobView:
        self.ended()
        return await self.view(job)

    async def events(self, job: str, after: int) -> Page:
        await self.view(job)
        return Page(tuple(item for item in number(len(self.said), self.said) if item.seq > after), False, True)


class ScriptedQueues:
    """Holds one queue."""

    def __init__(self) -> None:
        self.standing = Standing(Gate.OPEN, running=1, pace=4.0)
        self.jobs: list[Held] = []
        self.listed: tuple[list[str], set[JobState], int] | None = None
        self.counted: dict[str, int] = {}
        self.cancelled: list[tuple[str, bool, str | None, Lane | None]] = []

    async def view(self, models: Sequence[str]) -> list[QueueView]:
        waiting = {lane: sum(job.state is JobState.QUEUED and job.lane is lane for job in self.jobs) for lane in Lane}
        return [QueueView(self.standing, waiting, 4.0) for _ in models]

    async def counts(self) -> Counts:
        return Counts(self.counted)

    async def set_gate(self, model: str, gate: Gate) -> None:
        self.standing = Standing(gate, running=1, pace=4.0)

    async def held(self, model: str) -> list[Held]:
        return self.jobs

    async def list_jobs(self, models: Sequence[str], states: Set[JobState], limit: int) -> list[JobView]:
        self.listed = (list(models), set(states), limit)
        return [view()]

    async def cancel(self, model: str, *, running: bool, owner: str | None = None, lane: Lane | None = None) -> int:
        self.cancelled.append((model, running, owner, lane))
        return len(self.jobs)


class ScriptedBoards:
    """Knows one board."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def drain(self, board: str) -> None:
        self._tell("drain", board)

    async def resume(self, board: str) -> None:
        self._tell("resume", board)

    async def forget(self, board: str) -> None:
        self._tell("forget", board)

    def _tell(self, step: str, board: str) -> None:
        if board != "rack/one":
            raise BoardUnknown(board, ["rack/one"])
        self.told.append((step, board))


class ScriptedCommander(Commander):
    """Boards that do what they are told, or answer with what a test has put down for them."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Command]] = []
        self.refusals: dict[str, Exception] = {}
        self.said: object = None

    async def ask(self, board: str, command: Command, seconds: float) -> msgspec.Raw:
        self.told.append((board, command))
        if board in self.refusals:
            raise self.refusals[board]
        return msgspec.Raw(msgspec.json.encode(self.said))


class ScriptedShelf:
    """A board that fetches as a test says, and does what it is told."""

    def __init__(self) -> None:
        self.progress: list[PullProgress | Exception] = []
        self.asked: list[tuple[str, str]] = []
        self.told: list[Command] = []
        self.refusal: Exception | None = None

    async def pull(self, name: str, board: str = "") -> AsyncGenerator[PullProgress, None]:
        self.asked.append((name, board))
        for step in self.progress:
            if isinstance(step, Exception):
                raise step
            yield step

    async def assemble(self, command: Create) -> None:
        self.told.append(command)
        if self.refusal is not None:
            raise self.refusal

    async def change(self, model: str, command: Create | Copy | Delete) -> None:
        self.told.append(command)
        if self.refusal is not None:
            raise self.refusal


class ScriptedSettings(SettingsBook):
    """The real book over one that is kept in memory."""

    def __init__(self, *parts: LiveSettings[Any]) -> None:
        super().__init__(connect_async("unix:///nowhere"), parts)
        self.book: dict[bytes, bytes] = {}

    async def _read(self) -> dict[bytes, bytes]:
        return dict(self.book)

    async def _write(self, new: Mapping[str, bytes], gone: Sequence[str]) -> None:
        self.book |= {name.encode(): raw for name, raw in new.items()}
        for name in gone:
            self.book.pop(name.encode(), None)


class ScriptedKeys:
    """Keys as if somebody had made them."""

    def __init__(self) -> None:
        self.by_digest: dict[str, ApiKey] = {}
        self.away = False

    def make(self, plain: str, *scopes: Scope, limits: Limits | None = None) -> None:
        """From now on this key is one."""
        digest = digest_of(plain.encode())
        self.by_digest[digest] = ApiKey(
            id=digest[:12], name=plain, scopes=frozenset(scopes), created=0.0, limits=limits
        )

    async def known(self) -> dict[str, ApiKey]:
        if self.away:
            raise QueueUnavailable("gone")
        return self.by_digest

    async def create(self, name: str, scopes: Iterable[Scope], limits: Limits | None = None) -> tuple[ApiKey, str]:
        if not scopes or any(key.name == name for key in self.by_digest.values()):
            raise KeyRefused("It cannot be made so.")
        self.make(name, *scopes, limits=limits)
        return self.by_digest[digest_of(name.encode())], name

    async def limit(self, name: str, limits: Limits | None) -> ApiKey:
        digest = self._find(name)
        self.by_digest[digest] = msgspec.structs.replace(self.by_digest[digest], limits=limits)
        return self.by_digest[digest]

    async def revoke(self, name: str) -> ApiKey:
        return self.by_digest.pop(self._find(name))

    def _find(self, name: str) -> str:
        for digest, key in self.by_digest.items():
            if name in (key.id, key.name):
                return digest
        raise KeyRefused("There is none.")


def view(**changed: Any) -> JobView:
    """A job that waits, but for what is changed."""
    fields: dict[str, Any] = {
        "id": JOB,
        "model": "tiny",
        "kind": "chat",
        "lane": Lane.INTERACTIVE,
        "state": JobState.QUEUED,
        "position": 3,
        "created_at": 1700000000.0,
    }
    return JobView(**(fields | changed))


class Nobody:
    """Looks after no batches."""

    def look(self) -> None:
        pass


class ScriptedTexts:
    """A board that says what a test has put down, or refuses with an error."""

    def __init__(self) -> None:
        self.said: object = None
        self.asked: list[Command] = []

    async def ask(
        self, model: str | None, command: Callable[[str], Command], kind: type[Any]
    ) -> tuple[ModelStatus, Any]:
        self.asked.append(command("tiny"))
        if isinstance(self.said, Exception):
            raise self.said
        return TINY, msgspec.convert(self.said, kind)


class ScriptedBatches(BatchBook):
    """Knows how far some are, and nothing else."""

    def __init__(self) -> None:
        super().__init__(connect_async("unix:///nowhere"))
        self.stands: list[Progress] = []

    async def unfinished(self) -> list[Progress]:
        return self.stands


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
