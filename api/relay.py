"""The one path of every front: accept a job, wait for its first event, yield its events, cancel it when its client leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from tasks.events import Event, Reply
from tasks.jobs import Lane
from tasks.requests import Request


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not an event of the job: it still waits, or is silent for long. Fronts keep the line warm with it.

    `position` counts from 1; None once a worker has the job.
    """

    position: int | None


class Answer:
    """One accepted job on its way to one client. Iterate it once, or ask for `whole`; then `close` it.

    `job` is its id, `model` the resolved model id, `position` its place in the queue when accepted (0: a worker took it at once).
    """

    job: str
    model: str
    position: int

    def __aiter__(self) -> AsyncIterator[Event | Waiting]:
        """Every event in order, each once, up to the last (Finished or Failed), with `Waiting` in between."""
        raise NotImplementedError

    async def whole(self, http: HttpRequest) -> Reply:
        """The folded answer. Raises `JobFailed` when the job fails, `ClientGone` (and cancels) when the client leaves first."""
        raise NotImplementedError

    async def close(self) -> None:
        """Cancel the job unless it has ended. Twice is safe."""
        raise NotImplementedError


class ClientGone(Exception):
    """Raised when the client closed its connection before the answer was whole; there is nobody to answer."""


class Relay:
    """Turns requests into answers through the queue."""

    async def start(
        self,
        model: str | None,
        request: Request,
        *,
        commit_early: bool,
        owner: str = "",
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
    ) -> Answer:
        """Resolve the model, accept a job, call a worker.

        With `commit_early` (streams) it then waits for the first event that decides a status, at most the patience
        setting; without, the caller takes `whole`. Raises `Refused`, `QueueUnavailable`, and `JobFailed` when the job
        failed before anything was sent. If the caller is cancelled meanwhile, so is the job.
        """
        raise NotImplementedError
