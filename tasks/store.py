"""The job records as API processes make and end them: accepted, attended, left, cancelled, forgotten."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any, cast

import msgspec
import redis.asyncio

from tasks import keys
from tasks.connection import text, unavailable_as_refusal
from tasks.disk import Disk
from tasks.errors import (
    JobNotFound,
    KeyReused,
    LimitReached,
    NotOnDisk,
    QueueDraining,
    QueueFull,
    QueueUnavailable,
    StorageFull,
    TasksError,
)
from tasks.events import Finished, FinishReason, Mark, Numbered, Queued, Timings, Usage, encode_events
from tasks.job_records import JobRecords, fields
from tasks.job_view import name_of
from tasks.jobs import JobState, Kept, Lane, Once, Rendering, Room, is_job_id, job_id_of
from tasks.limits import Allowance, Bucket, Limits
from tasks.policy import rank
from tasks.queue import call
from tasks.requests import Request, adapter_of, encode_request, kin_of, kind_of, prefix_of, talk_of
from tasks.scripts import ACCEPT, ATTEND, CANCEL, FORGET, LEAVE
from tasks.standing import Standing, read_standing

ACCEPTED = Numbered(1, Queued())
"""What is on record of a job that was accepted a moment ago."""
QUEUED = encode_events([ACCEPTED.event])
CANCELLED = encode_events([Finished(FinishReason.CANCELLED, Usage(0, 0), Timings())])


class Accepted(msgspec.Struct, frozen=True):
    """A job's place when it was accepted: how many wait before it, how its queue stands, and the room that is left. It was
    `heard` where somebody had subscribed to its channel by then, who thus misses nothing of what follows its `ACCEPTED`."""

    place: int
    standing: Standing
    room: Room
    heard: bool
    allowance: Allowance | None = None
    """What is left to its owner, where that is limited."""


class Attended(msgspec.Struct, frozen=True):
    """What a new reader of a job has to know: the model whose queue it is in, and its name with the adapter's; how far
    its record goes, and whether that is its end; its grace in seconds; and how its answer is said, where it can be."""

    model: str
    name: str
    last: Mark
    ended: bool
    grace: float
    rendering: Rendering | None


FORGETTING = 2.0
"""Seconds for which a record that is to be forgotten may still be read, by whoever is at it."""


def _allowance(limits: Limits, left: list[int]) -> Allowance:
    requests = Bucket(limits.requests, left[0], left[1] / 1000) if limits.requests is not None else None
    tokens = Bucket(limits.tokens, left[2], left[3] / 1000) if limits.tokens is not None else None
    return Allowance(requests, tokens)


class JobStore(JobRecords):
    """The records of all jobs, and all that API processes do to them. Its methods raise `QueueUnavailable` while Redis is away.

    With a `disk`, jobs that nobody reads are on it when they are accepted.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        queue_limit: int,
        job_ttl: float,
        deadline: float,
        disk: Disk | None = None,
    ) -> None:
        super().__init__(client)
        self._disk = disk
        self._queue_limit = queue_limit
        self._job_ttl = job_ttl
        self._deadline = deadline

    def set_limits(self, *, queue_limit: int, job_ttl: float, deadline: float) -> None:
        """What counts for jobs that are accepted from now on."""
        self._queue_limit = queue_limit
        self._job_ttl = job_ttl
        self._deadline = deadline

    async def accept(
        self,
        job: str,
        model: str,
        request: Request,
        *,
        lane: Lane,
        owner: str,
        deadline: float | None = None,
        reader: str | None = None,
        grace: float = 0.0,
        rendering: Rendering | None = None,
        kept: Kept | None = None,
        ttl: float | None = None,
        on_disk: bool = True,
        webhook: str | None = None,
        once: Once | None = None,
        limits: Limits | None = None,
        trace: str | None = None,
        held: str | None = None,
    ) -> Accepted:
        """Record the job, its first event and its place in the queue, and call a worker, in one step. Raises `QueueFull`,
        `QueueDraining`, `StorageFull`, and `LimitReached` where its owner has `limits`.

        `deadline` is in seconds from now, at most the setting of that name, but for batch items, which may wait for as long
        as their batch. The record stays for `ttl` seconds after the job's end, None being as the setting says.
        `reader` is who waits for the answer, as PROCESS/STREAM; once it has left, or its process does not breathe any more,
        the job is cancelled, unless somebody reads it within `grace` seconds. A job without a reader is on the disk when this
        returns, which takes two to seven seconds, unless `on_disk` is false: for one that would be accepted again if it were
        lost. Raises `NotOnDisk`; the job is cancelled then, but for one that its client asks for again: `once`, for which this
        raises `KeyReused` when something else was accepted under its id. `kept` is what its front will ask for,
        `webhook` the address that is told of its end (`tasks/webhooks.py`), `trace` the span of the request, as the header
        `traceparent` names it, `held` what its model waits for besides other jobs (`tasks/waits_for.py`); whether its queue is
        paused is seen here.
        """
        ttl = kept.ttl if kept is not None else ttl or self._job_ttl
        limit = deadline or self._deadline
        if lane is not Lane.BATCH:
            limit = min(limit, self._deadline)
        talk, follows = (talk_of(request) if lane is not Lane.BATCH else None) or (None, None)
        record = {
            "kind": kind_of(request),
            "lane": lane.value,
            "request": encode_request(request),
            "ttl": int(ttl * 1000),
            "readers": reader,
            "grace": int(grace * 1000) if grace else None,
            "front": rendering.front if rendering is not None else None,
            "head": rendering.head if rendering is not None else None,
            "prefix": prefix_of(request) if lane is Lane.BATCH else None,
            "kin": kin_of(request) if lane is Lane.BATCH else None,
            "talk": talk,
            "follows": follows,
            "webhook": webhook,
            "trace": trace,
            "held": held if lane is not Lane.BATCH else None,
            "asked": once.asked if once is not None else None,
            "adapter": adapter_of(request),
        }
        with unavailable_as_refusal():
            answer = await ACCEPT.arun(
                self._client,
                [
                    *(keys.job(job), keys.events(job), keys.waiting(model), keys.running(model)),
                    *(keys.ORDER, keys.calls(model), keys.turns(model), keys.lanes(model)),
                    *(keys.REFUSAL, keys.GATES, keys.kept(job)),
                ],
                *(job, self._queue_limit, rank(lane), QUEUED, int(limit * 1000), call(model, lane.value, job)),
                *(model, owner, kept.data if kept is not None else b"", limits.words() if limits is not None else ""),
                *(part for name, value in record.items() if value is not None for part in (name, value)),
            )
        reply = cast("list[Any]", answer)
        match reply:
            case [-1, why]:
                raise StorageFull(text(why))
            case [-2]:
                raise QueueDraining(model)
            case [-3, which, size, ms, left] if limits is not None:
                raise LimitReached(text(which), size, ms / 1000, _allowance(limits, left))
        accepted, waiting, place, stands, heard, *left = reply
        standing = read_standing(stands)
        if not accepted:
            raise QueueFull(model, waiting, retry_after=standing.pace)
        if once is not None:
            await self._is_there(once)
        if reader is None and on_disk:
            await self._wait_for(job, cancel=once is None)
        room = Room(self._queue_limit, max(0, self._queue_limit - waiting), waiting * standing.pace)
        return Accepted(place, standing, room, heard > 0, _allowance(limits, *left) if limits is not None else None)

    async def id_of(self, owner: str, key: str) -> str:
        """The id of the job that this owner makes under a key of its own; always the same one, and only known to who asks."""
        new = secrets.token_bytes(32)
        with unavailable_as_refusal():
            kept = cast("bytes | None", await self._client.set(keys.SECRET, new, nx=True, get=True))
        return job_id_of(f"{owner}\0{key}", kept or new)

    async def has(self, once: Once) -> bool:
        """Whether that was accepted before; it is on the disk then. Raises `KeyReused` and `NotOnDisk`."""
        if not await self._is_there(once):
            return False
        await self._wait_for(once.job, cancel=False)
        return True

    async def _is_there(self, once: Once) -> bool:
        with unavailable_as_refusal():
            asked = cast("bytes | None", await self._client.hget(keys.job(once.job), "asked"))
        if asked not in (None, once.asked):
            raise KeyReused
        return asked is not None

    async def _wait_for(self, job: str, *, cancel: bool) -> None:
        """Return once the job is on the disk; else nobody hears of it, so it is cancelled if it is to be."""
        if self._disk is None:
            return
        try:
            await self._disk.has_all()
            with unavailable_as_refusal():
                there = await self._client.exists(keys.job(job))
            if not there:  # it came back without its last moment, while we waited
                raise QueueUnavailable(f"Redis forgot {job}", problem="broke down just now")
        except BaseException as error:
            if cancel:
                with contextlib.suppress(TasksError):
                    await self.cancel(job, "not on the disk")
            elif isinstance(error, NotOnDisk):
                raise NotOnDisk(error.why, error.retry_after, again=True) from error
            raise

    async def cancel(self, job: str, reason: str) -> JobState:
        """Ask for the job's end; its state before. A queued job ends at once, a running one within about a token.

        Raises `JobNotFound`.
        """
        if not is_job_id(job):
            raise JobNotFound(job)
        with unavailable_as_refusal():
            model = await self._model(job)
            state = await CANCEL.arun(
                self._client,
                [keys.job(job), keys.events(job), keys.waiting(model)],
                *(job, reason, CANCELLED),
            )
        if state is None:
            raise JobNotFound(job)
        return JobState(cast(bytes, state).decode())

    async def attend(self, job: str, reader: str) -> Attended:
        """One more reads the answer of a job, and keeps it going with that. Raises `JobNotFound`."""
        with unavailable_as_refusal():
            reply = cast("list[Any] | None", await ATTEND.arun(self._client, [keys.job(job), keys.events(job)], reader))
        if reply is None:
            raise JobNotFound(job)
        record = fields(reply[1:])
        last = Mark.of(reply[0])
        if "ended" in record and not last.seq:
            raise JobNotFound(job)  # its events have made room for others before the rest of it
        rendering = Rendering(record["front"].decode(), record["head"]) if "front" in record else None
        grace = int(record.get("grace", b"0")) / 1000
        return Attended(record["model"].decode(), name_of(record), last, "ended" in record, grace, rendering)

    async def leave(self, job: str, reader: str = "") -> float:
        """This reader has left; '' is nobody. A job that was to be read and that nobody reads any more is cancelled once its
        grace is over: for how many seconds it may still go on, 0 when that is settled.

        Raises `JobNotFound`.
        """
        with unavailable_as_refusal():
            model = await self._model(job)
            ms = await LEAVE.arun(
                self._client,
                [keys.job(job), keys.events(job), keys.waiting(model)],
                *(job, reader, "nobody reads it", CANCELLED),
            )
        return cast(int, ms) / 1000

    async def _model(self, job: str) -> str:
        model = cast("bytes | None", await self._client.hget(keys.job(job), "model"))
        if model is None:
            raise JobNotFound(job)
        return model.decode()

    async def forget(self, job: str) -> None:
        """End the job, and keep nothing of it: what its front kept goes at once, its record in a moment. Raises `JobNotFound`."""
        with unavailable_as_refusal():
            model = await self._model(job)
            forgotten = await FORGET.arun(
                self._client,
                [keys.job(job), keys.events(job), keys.kept(job), keys.waiting(model)],
                *(job, "deleted by request", CANCELLED, int(FORGETTING * 1000)),
            )
        if forgotten is None:
            raise JobNotFound(job)
