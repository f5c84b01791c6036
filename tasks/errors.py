"""Why a request was not answered, as one tree.

TasksError
├── Refused                 before a job existed; nothing was queued
│   ├── UnknownModel        no board has announced a model of that name
│   ├── ModelDown           known, but no board can serve it now
│   ├── QueueFull           as many jobs wait for the model as may
│   ├── KeyReused           an idempotency key was used before, for something else
│   ├── LimitReached        the owner of an API key has asked for all that it may
│   ├── QueueDraining       an administrator lets the model's queue run empty
│   ├── StorageFull         the disk of the queue is as good as full
│   ├── AnswerTooLarge      the answer would be larger than a job's record may be
│   ├── AbilityMissing      the model is not made for what was asked of it
│   └── FieldRefused        the model cannot honour a field of the request
├── JobFailed               the job was accepted and failed; carries its Failed event
├── JobCancelled            the job was accepted, and somebody else cancelled it
├── JobNotFound             no job of that id, or its record has expired
├── BoardUnknown            no board of that name is there
├── FileUnknown             no file of that id, or it has expired
├── BatchUnknown            no batch of that id, or it has expired
├── QueueUnavailable        Redis is away, full, or cannot serve for another reason
├── NotOnDisk               a job that nobody waits for would not survive a power cut, so it was not accepted
└── CommandFailed           a board refused a command, or did not answer in time
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.events import Failed
from tasks.jobs import Room
from tasks.limits import Allowance

FEW = 12
"""Models that are named to whoever asks for one that is not there."""


def megabytes(size: int) -> str:
    """So many bytes, for people."""
    return f"{size / 1e6:.3g} MB"


def _shown(name: str) -> str:
    return name if len(name) <= 60 else name[:60] + "…"


class TasksError(Exception):
    """The root; its message says what happened, why, and what to do."""


class Refused(TasksError):
    """Raised before a job exists; nothing was queued."""


class UnknownModel(Refused):
    """Raised when no board has announced a model of that name. `nearest` is a known name much like it, or None; `refused`
    a board that has files of just that name, and why it cannot use them; `known` are the ids there are, named where they are
    few."""

    def __init__(
        self,
        name: str,
        nearest: str | None = None,
        refused: tuple[str, str] | None = None,
        known: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.nearest = nearest
        self.refused = refused
        shown = name if len(name) <= 100 else name[:100] + "…"
        if refused is not None:
            board, why = refused
            super().__init__(f"The model '{shown}' cannot be used. The board '{board}' has its files, but: {why}")
            return
        hint = " GET /v1/models lists the models there are."
        if nearest:
            hint = f" Did you mean '{nearest}'?"
        elif 0 < len(known) <= FEW:
            hint = f" There are: {', '.join(known)}."
        super().__init__(
            f"The model '{shown}' does not exist.{hint}"
            if name
            else "No model was named, and there is none to choose: no board has announced one yet."
        )


class ModelDown(Refused):
    """Raised when a model is known but no board can serve it now. `retry_after` is in seconds."""

    def __init__(self, model: str, why: str, retry_after: float = 10.0) -> None:
        self.model = model
        self.retry_after = retry_after
        super().__init__(f"The model '{model}' cannot be served now: {why}")


class QueueFull(Refused):
    """Raised when `limit` jobs wait for the model already. `retry_after` is in seconds, at most 60."""

    def __init__(self, model: str, limit: int, retry_after: float) -> None:
        self.model = model
        self.room = Room(limit, 0, limit * retry_after)
        self.retry_after = min(60.0, max(1.0, retry_after))
        super().__init__(
            f"The queue for '{model}' is full ({limit} requests are waiting). Try again in {self.retry_after:.0f} s."
        )


class KeyReused(Refused):
    """Raised when a client has used its idempotency key before, for something else."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used before, for a request that differs from this one. Use a new key for each request, "
            "and the same only to send one again."
        )


class LimitReached(Refused):
    """Raised when the owner of an API key has asked for all that it may: `which` is requests, tokens or jobs, `limit` how many.
    `retry_after` is in seconds, `allowance` what is left."""

    def __init__(self, which: str, limit: int, retry_after: float, allowance: Allowance) -> None:
        self.allowance = allowance
        self.which = which
        self.limit = limit
        self.retry_after = retry_after
        at_once = which == "jobs"
        may = f"have {limit} requests at once" if at_once else f"use {limit} {which} a minute"
        mend = "Wait until one of them has ended." if at_once else f"Try again in {max(1.0, retry_after):.0f} s."
        super().__init__(f"Your API key may {may}, and has. {mend}")


class StorageFull(Refused):
    """Raised when no job is accepted because the disk could not keep it. `why` has the figures; `retry_after` is in seconds."""

    def __init__(self, why: str, retry_after: float = 30.0) -> None:
        self.retry_after = retry_after
        super().__init__(f"{why} Nothing was started; try again when there is room.")


class QueueDraining(Refused):
    """Raised while an administrator lets the queue run empty. `retry_after` is in seconds."""

    def __init__(self, model: str, retry_after: float = 60.0) -> None:
        self.model = model
        self.retry_after = retry_after
        super().__init__(
            f"The queue for '{model}' takes no new requests: an administrator lets it run empty. Use another model, or "
            "try again later."
        )


class AnswerTooLarge(Refused):
    """Raised when what is asked for would be larger than the record of one job may be. Sizes are in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"This answer may become {megabytes(size)} large, and a job's record holds {megabytes(limit)}. Ask for fewer or "
            "shorter answers, in several requests perhaps."
        )


class AbilityMissing(Refused):
    """Raised when a model is not made for what was asked of it. `abilities` are those it has."""

    def __init__(self, model: str, ability: str, abilities: Iterable[str]) -> None:
        self.model = model
        what = {"text": "generate text", "embedding": "embed", "rerank": "rerank"}
        can = " and ".join(what.get(each, each) for each in abilities) or "do nothing with this runtime"
        super().__init__(
            f"The model '{model}' cannot {what.get(ability, ability)}; it can {can}. Choose a model that can: GET /v1/models "
            "lists the capabilities of each."
        )


class FieldRefused(Refused):
    """Raised when a model cannot honour a field of the request. `field` is its name in the shared vocabulary."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        super().__init__(f"'{field}' is not supported here: {why}")


class JobFailed(TasksError):
    """Raised when an accepted job failed before anything of its answer was sent."""

    def __init__(self, job: str, failed: Failed) -> None:
        self.job = job
        self.failed = failed
        super().__init__(failed.message)


class JobCancelled(TasksError):
    """Raised when somebody else cancelled an accepted job before anything of its answer was sent."""

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__("The job was cancelled.")


class JobNotFound(TasksError):
    """Raised when there is no job of that id, or its record has expired."""

    def __init__(self, job: str) -> None:
        super().__init__(f"There is no job '{_shown(job)}'. Records expire some time after a job's end.")


class BoardUnknown(TasksError):
    """Raised when no board of that name is there; the message names those that are, `living`."""

    def __init__(self, board: str, living: Iterable[str]) -> None:
        super().__init__(f"There is no board '{_shown(board)}'. There are: {', '.join(living) or 'none'}.")


class BoardLives(TasksError):
    """Raised when a board that is to be forgotten is there."""

    def __init__(self, board: str) -> None:
        super().__init__(f"The board '{_shown(board)}' is there. Stop it first; what is there cannot be forgotten.")


class FileUnknown(TasksError):
    """Raised when there is no file of that id, or its time is over."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"There is no file '{_shown(file_id)}'. GET /v1/files lists those there are.")


class BatchUnknown(TasksError):
    """Raised when there is no batch of that id, or its time is over."""

    def __init__(self, batch: str) -> None:
        super().__init__(f"There is no batch '{_shown(batch)}'. GET /v1/batches lists those there are.")


class QueueUnavailable(TasksError):
    """Raised when Redis cannot serve. `detail` is what the client of Redis said; it may name addresses and paths, so it is
    for logs and no part of the message. `retry_after` is in seconds; `begun` says that a job had been accepted."""

    def __init__(
        self, detail: str, retry_after: float = 5.0, *, begun: bool = False, problem: str = "cannot be reached"
    ) -> None:
        self.detail = detail
        self.retry_after = retry_after
        what = "This answer was on its way and is lost" if begun else "Nothing was started"
        super().__init__(f"The job queue {problem}. {what}; try again shortly.")


class NotOnDisk(TasksError):
    """Raised when a job was to be on the disk before its client hears of it, and is not. `retry_after` is in seconds; None:
    trying again does not help. With `again` it was left as it is, for its client to send once more."""

    def __init__(self, why: str, retry_after: float | None = 10.0, *, again: bool = False) -> None:
        self.why = why
        self.retry_after = retry_after
        end = "Send it again with the same Idempotency-Key: it may be there." if again else "It was not accepted."
        super().__init__(f"A request that nobody waits for is kept on the disk first, but {why}. {end}")


class CommandFailed(TasksError):
    """Raised when a board refused a command or did not answer in time. `code` is a word of `tasks.commands`."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)
