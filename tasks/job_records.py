"""The job records, read: how a job stands, and what it has said."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import redis.asyncio

from tasks import keys
from tasks.clock import Calendar
from tasks.connection import text, unavailable_as_refusal
from tasks.errors import JobNotFound
from tasks.events import Event, Numbered
from tasks.job_view import read_view
from tasks.jobs import JobState, JobView, Rendering, is_job_id
from tasks.scripts import PLACE, VIEW
from tasks.standing import Standing, read_standing
from tasks.stream import numbered

PAGE = 1000
"""Entries of a job's record that are read for one page; each holds a few events at most."""


class KeptJob(msgspec.Struct, frozen=True):
    """A job of which its front keeps something: whose it is, that `data`, how its answer is said, and all that was said."""

    owner: str
    data: bytes
    rendering: Rendering
    state: JobState
    events: tuple[Event, ...]


class JobAnswer(msgspec.Struct, frozen=True):
    """All that a job has said so far, and how its answer is said, where it can be."""

    rendering: Rendering | None
    state: JobState
    events: tuple[Event, ...]


class Page(msgspec.Struct, frozen=True):
    """Some events of a job, in order. `more`: there are further ones now; `ended`: and no others will come."""

    events: tuple[Numbered, ...]
    more: bool
    ended: bool


def fields(reply: list[Any]) -> dict[str, bytes]:
    """A flat list of names and values as a dict."""
    return {reply[index].decode(): reply[index + 1] for index in range(0, len(reply), 2)}


class JobRecords:
    """The records of all jobs. Its methods raise `QueueUnavailable` while Redis is away."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def view(self, job: str) -> JobView:
        """The job as it stands. Raises `JobNotFound`."""
        if not is_job_id(job):
            raise JobNotFound(job)
        with unavailable_as_refusal():
            reply = cast(list[Any] | None, await VIEW.arun(self._client, [keys.job(job), keys.events(job)], job))
        if reply is None:
            raise JobNotFound(job)
        place, stands, seq, shift, shifts, *record = reply
        return read_view(job, place, stands, seq, Calendar(shift, list(map(text, shifts))), fields(record))

    async def events(self, job: str, after: int) -> Page:
        """Its events behind number `after`, as many as go on a page. Raises `JobNotFound` and `Unreadable`."""
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hmget(keys.job(job), "state", "ended")
                pipe.xrange(keys.events(job), min=f"{after + 1}-0", count=PAGE + 1)
                (state, ended), entries = await pipe.execute()
        if state is None:
            raise JobNotFound(job)
        more = len(entries) > PAGE
        events = [item for entry, found in entries[:PAGE] for item in numbered(entry, found[b"e"]) if item.seq > after]
        return Page(tuple(events), more, ended is not None and not more)

    async def kept(self, job: str) -> KeptJob:
        """What its front keeps of a job, and what was said. Raises `JobNotFound`, also where none keeps any, and `Unreadable`."""
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hmget(keys.job(job), "owner", "state", "front", "head")
                pipe.get(keys.kept(job))
                pipe.xrange(keys.events(job))
                (owner, state, front, head), data, entries = await pipe.execute()
        # They may make room for others one after the other, once the job has ended.
        if None in (state, front, data) or not entries:
            raise JobNotFound(job)
        events = tuple(item.event for entry, found in entries for item in numbered(entry, found[b"e"]))
        return KeptJob(owner.decode(), data, Rendering(front.decode(), head), JobState(state.decode()), events)

    async def answer(self, job: str) -> JobAnswer:
        """All that a job has said so far. Raises `JobNotFound`, also when that has made room for others, and `Unreadable`."""
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hmget(keys.job(job), "state", "front", "head")
                pipe.xrange(keys.events(job))
                (state, front, head), entries = await pipe.execute()
        if state is None or not entries:
            raise JobNotFound(job)
        events = tuple(item.event for entry, found in entries for item in numbered(entry, found[b"e"]))
        rendering = Rendering(front.decode(), head) if front is not None else None
        return JobAnswer(rendering, JobState(state.decode()), events)

    async def place(self, job: str, model: str) -> tuple[int, Standing] | None:
        """How many jobs wait before this one, and how its queue stands; None when it does not wait.

        Raises `JobNotFound` when its record is gone.
        """
        with unavailable_as_refusal():
            reply = cast(
                "list[Any] | None",
                await PLACE.arun(self._client, [keys.job(job), keys.waiting(model)], job, model),
            )
        if reply is None:
            raise JobNotFound(job)
        return (reply[0], read_standing(reply[1])) if reply[0] >= 0 else None
