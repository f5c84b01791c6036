"""A job: its states, its lanes, and the view of it that clients poll."""

from __future__ import annotations

import hashlib
import re
import secrets
from enum import StrEnum

import msgspec

from tasks.events import Failed, Timings, Usage


class Room(msgspec.Struct, frozen=True):
    """How full a model's queue is: how many may wait, for how many more there is room, and in about how many seconds it
    is empty if nobody else comes."""

    limit: int
    left: int
    empty_in: float


class Rendering(msgspec.Struct, frozen=True):
    """How the answer of a job is said to its client: in the dialect of which front, and what that front has to know of it for
    as long as it is said. Only that front reads its `head`."""

    front: str
    head: bytes


class Kept(msgspec.Struct, frozen=True):
    """What a front keeps of a request whose answer will be asked for later. Only that front reads its `data`; it stays as long
    as the job's record, which then is for `ttl` seconds after the job's end."""

    data: bytes
    ttl: float


class Once(msgspec.Struct, frozen=True):
    """A job that its client may ask for again, under an id that stays the same, and a digest of what is asked."""

    job: str
    asked: bytes


class JobState(StrEnum):
    """Where a job stands. Derived where events are written; nothing else sets it."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED})


class Phase(StrEnum):
    """What a running job's worker is doing."""

    LOADING = "loading"
    PREFILL = "prefill"
    DECODE = "decode"


class Lane(StrEnum):
    """Who goes first: an interactive job before any background one, those before any batch item, as `tasks/policy.py` says."""

    INTERACTIVE = "interactive"
    BACKGROUND = "background"
    BATCH = "batch"


_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_JOB_ID = re.compile(r"[a-z2-7]{22}")


def new_job_id() -> str:
    """An id nobody can guess (110 random bits); knowing it is what lets a client read or cancel the job."""
    return _spelled(secrets.randbits(110))  # asked for at once: a choice for each letter takes thirty times as long


def job_id_of(text: str, secret: bytes = b"") -> str:
    """The id that always belongs to `text`; nobody can guess it without the secret, which is at most 64 bytes."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), key=secret, digest_size=14).digest())
    return _spelled(number)


def _spelled(number: int) -> str:
    return "".join([_ALPHABET[number >> place & 31] for place in range(0, 110, 5)])


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of a job id; anything else never reaches a Redis key."""
    return _JOB_ID.fullmatch(text) is not None


class EndedClaim(msgspec.Struct, frozen=True):
    """A claim that ended before its job did. Times are unix seconds."""

    started_at: float
    ended_at: float
    board: str
    why: str
    goes_to: str | None = None
    """The board that had read the job by then, to go on behind what was said; None where none had."""


class Before(msgspec.Struct, frozen=True):
    """A job that was before another one when that was accepted. Whoever knows its id may read it."""

    id: str
    lane: Lane
    running: bool


class JobView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A job as clients see it. Times are unix seconds; `position` counts from 1 and is None unless queued."""

    id: str
    model: str
    kind: str
    lane: Lane
    state: JobState
    phase: Phase | None = None
    position: int | None = None
    estimated_wait: float | None = None
    """Seconds until it is likely to be taken, from how long its model's jobs take; None unless queued, or nobody can tell."""
    attempts: int = 0
    pauses: int = 0
    """How many of those ended because a chat came."""
    interruptions: tuple[str, ...] = ()
    """Why claims of it ended before it did: crashes, stalls, lapsed leases."""
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    prompt_tokens_done: int | None = None
    prompt_tokens_again: int = 0
    """Tokens that were prefilled more than once, since it was interrupted."""
    usage: Usage | None = None
    timings: Timings | None = None
    error: Failed | None = None
    worker: str | None = None
    board: str | None = None
    events: int = 0
    """Sequence number of the last event."""
    ahead: int | None = None
    """How many jobs workers had or would take before it, when it was accepted."""
    behind: tuple[Before, ...] = ()
    """Some of those: that ran, and the nearest that waited."""
    held: str | None = None
    """What it waited for besides them, when it was accepted: `load`, `room`, `board` or `queue`."""
    home: str | None = None
    """Where its conversation was in a cache when it was first claimed: `new`, `here`, `elsewhere` or `gone`."""
    waiting_since: float | None = None
    """When it began to wait for the last time."""
    claims: tuple[EndedClaim, ...] = ()
    """Those that ended before it did, as far as its record has room for them."""
