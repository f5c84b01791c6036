"""The services of an API process but its relay, which know what a test has put down."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import msgspec

from tasks.api_keys import ApiKey, KeyRefused, Scope, digest_of
from tasks.asking import Commander
from tasks.batch import BatchBook, Progress
from tasks.card import Card
from tasks.commands import Command, Copy, Create, Delete, PullProgress
from tasks.connection import connect_async
from tasks.counts import Counts
from tasks.errors import BoardUnknown, JobNotFound, QueueUnavailable, UnknownModel
from tasks.events import Event, number
from tasks.job_records import JobAnswer, KeptJob, Page
from tasks.jobs import JobState, JobView, Lane, Once, Rendering, job_id_of
from tasks.limits import Limits
from tasks.live_settings import LiveSettings, SettingsBook
from tasks.presence import Presence
from tasks.queue_book import Held, QueueView
from tasks.roster import ModelStatus, Snapshot
from tasks.standing import Gate, Standing
from tests.api.scripted import JOB, TINY


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

    async def remove(self, name: str) -> None:
        await self.change(name, Delete(name))

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
            raise KeyRefused("It cannot be made so.", usage=not scopes)
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
