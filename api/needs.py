"""What routes need of the things an API process holds for its whole life."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Protocol, TypedDict, TypeVar, cast

from starlette.requests import Request

from api.blobs import BlobShelf
from api.drain import Drain
from api.fronts import Front
from api.relay import Relay
from api.settings import ApiSettings
from api.storage import Storage
from tasks.api_keys import ApiKey, Scope
from tasks.batch import BatchBook
from tasks.commands import Command, Copy, Create, PullProgress, RuntimeUsed
from tasks.counts import Counts
from tasks.files import FileBook
from tasks.job_records import JobAnswer, KeptJob, Page
from tasks.jobs import JobState, JobView, Lane, Once
from tasks.limits import Limits
from tasks.live_settings import LiveSettings, SettingView
from tasks.presence import Presence
from tasks.queue_book import Held, QueueView
from tasks.roster import ModelStatus, Snapshot
from tasks.standing import Gate

Result = TypeVar("Result")


class RosterView(Protocol):
    """Which models there are. `models` and `resolve` answer from memory."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest reading."""

    def models(self) -> Sequence[ModelStatus]: ...

    def resolve(self, name: str | None) -> ModelStatus:
        """The model that `name` means, None meaning the default one. Raises `UnknownModel`."""

    async def find(self, name: str | None) -> ModelStatus:
        """The same, but looks again before it says no. Raises `UnknownModel` and `QueueUnavailable`."""

    def workers(self, model: str) -> Sequence[Presence]:
        """The workers of a model that are alive, by its id."""

    async def refresh(self) -> None:
        """Look again. Raises `QueueUnavailable`."""


class JobBook(Protocol):
    """Jobs by their id. Each raises `JobNotFound` and `QueueUnavailable`."""

    async def view(self, job: str) -> JobView: ...

    async def wait(self, job: str, known: JobView, seconds: float) -> JobView:
        """The job's view once state, phase or position differ from `known`, else after `seconds`."""

    async def cancel(self, job: str) -> JobView:
        """Ask for the job's end; the view says how it stands. An ended job stays as it is."""

    async def events(self, job: str, after: int) -> Page:
        """Its events behind number `after`, as many as go on a page."""

    async def kept(self, job: str) -> KeptJob:
        """What its front keeps of it, and what was said; one of which none keeps anything is not found."""

    async def answer(self, job: str) -> JobAnswer:
        """All that it has said so far."""

    async def id_of(self, owner: str, key: str) -> str:
        """The id of the job that this owner makes under a key of its own; always the same one."""

    async def has(self, once: Once) -> bool:
        """Whether that was accepted before; it is on the disk then. Raises `KeyReused` and `NotOnDisk` as well."""

    async def forget(self, job: str) -> None:
        """End it, and keep nothing of it."""


class QueueBook(Protocol):
    """Queues by their model's id. Each raises `QueueUnavailable`."""

    async def view(self, models: Sequence[str]) -> list[QueueView]: ...

    async def counts(self) -> Counts: ...

    async def set_gate(self, model: str, gate: Gate) -> None: ...

    async def held(self, model: str) -> list[Held]: ...

    async def list_jobs(self, models: Sequence[str], states: Set[JobState], limit: int) -> list[JobView]: ...

    async def cancel(self, model: str, *, running: bool, owner: str | None = None, lane: Lane | None = None) -> int: ...


class BoardBook(Protocol):
    """Boards, told what to do. Each raises `BoardUnknown` and `QueueUnavailable`."""

    async def drain(self, board: str) -> None: ...

    async def resume(self, board: str) -> None: ...

    async def forget(self, board: str) -> None:
        """Raises `BoardLives` as well."""


class TextBook(Protocol):
    """What boards know of texts."""

    async def ask(
        self, model: str | None, command: Callable[[str], Command], kind: type[Result]
    ) -> tuple[ModelStatus, Result]:
        """The model, and a board's answer to the command that is made for its id, as a `kind`.

        Raises `UnknownModel`, `ModelDown`, `QueueUnavailable`, and `HttpProblem` where the board refuses.
        """


class ModelShelf(Protocol):
    """Which models boards have, changed. Each raises `CommandFailed`, `ModelDown` and `QueueUnavailable`."""

    def pull(self, name: str, board: str = "") -> AsyncGenerator[PullProgress, None]:
        """Have a board, or the first one, fetch a model, and tell how far it is; whoever leaves ends nothing. Raises
        `BoardUnknown` as well."""

    async def assemble(self, command: Create) -> None:
        """Have a board make a model of files that were sent, one on whose machine they are."""

    async def remove(self, name: str) -> None:
        """Have every board remove what it has of that name, also where it cannot be used. Raises `UnknownModel` as well."""

    async def change(self, model: str, command: Create | Copy) -> None:
        """Have every board that has the model `model` do this. Raises `UnknownModel` as well."""


class ModelLoading(Protocol):
    """Models loaded and unloaded on boards. Each raises `UnknownModel`, `BoardUnknown`, `QueueUnavailable`, and
    `HttpProblem` where a board refuses."""

    async def load(self, model: str, board: str | None, keep: float | None, *, wait: bool) -> tuple[str, str]:
        """Have that board, or the one where it suits best, load a model, which then stays for `keep` seconds after its last job;
        its id and the board. With `wait` it is loaded then. Raises `ModelDown` as well."""

    async def unload(self, model: str, board: str | None) -> tuple[str, list[str]]:
        """Have that board, or all of them, unload a model; its id and those that had it."""


class BoardRuntimes(Protocol):
    """The NPU's runtime of each board."""

    async def use(self, board: str, version: str, model: str) -> RuntimeUsed:
        """Have a board use another release, once it was tried. Raises `BoardUnknown`, `QueueUnavailable`, and `HttpProblem`
        where the board refuses."""


class KeyBook(Protocol):
    """The API keys that were made."""

    async def known(self) -> dict[str, ApiKey]:
        """Every key by its digest. Raises `QueueUnavailable` when they could never be read."""

    async def create(self, name: str, scopes: Iterable[Scope], limits: Limits | None = None) -> tuple[ApiKey, str]:
        """Make a key; what is kept of it, and the key itself. Raises `KeyRefused` and `QueueUnavailable`, as the others do."""

    async def limit(self, name: str, limits: Limits | None) -> ApiKey:
        """Let a key ask for so much from now on; by its id or its name."""

    async def revoke(self, name: str) -> ApiKey:
        """Make a key useless; by its id or its name."""


class SettingsBook(Protocol):
    """The settings that may be changed while the service runs. Each raises `QueueUnavailable`."""

    async def view(self) -> list[SettingView]: ...

    async def change(self, wanted: Mapping[str, Any], by: str) -> list[SettingView]:
        """Keep these values, None meaning what each process was started with. Raises `SettingRefused` as well."""


class Attendant(Protocol):
    """Looks after the batches."""

    def look(self) -> None:
        """There is something to do now."""


class Services(TypedDict):
    """The state that the lifespan yields. `ping` raises `QueueUnavailable` when Redis does not answer."""

    relay: Relay
    roster: RosterView
    jobs: JobBook
    queues: QueueBook
    boards: BoardBook
    api_keys: KeyBook
    settings: SettingsBook
    files: FileBook
    storage: Storage
    batches: BatchBook
    feeding: Attendant
    texts: TextBook
    shelf: ModelShelf
    loading: ModelLoading
    runtimes: BoardRuntimes
    blobs: BlobShelf
    ping: Callable[[], Awaitable[None]]


def services_of(http: Request) -> Services:
    """The services of the process that answers this request."""
    return cast(Services, http.scope["state"])


async def roster_of(http: Request) -> RosterView:
    """The roster, to be listed. None known yet is not the same as none there: then it looks again. Raises `QueueUnavailable`."""
    roster = services_of(http)["roster"]
    if not roster.models():
        await roster.refresh()
    return roster


def settings_of(http: Request) -> ApiSettings:
    """The settings of the process that answers this request, as they are now."""
    return cast("LiveSettings[ApiSettings]", http.app.state.settings).now


def fronts_of(http: Request) -> Sequence[Front]:
    """The dialects that are spoken."""
    return cast(Sequence[Front], http.app.state.fronts)


def drain_of(http: Request) -> Drain:
    """The open answers of the process that answers this request."""
    return cast(Drain, http.app.state.drain)
