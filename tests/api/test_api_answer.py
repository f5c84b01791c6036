"""What a stream waits for before it has a status, and what becomes of its job when its record was forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from api.answer import FORGOTTEN, Answer, Waiting
from tasks.errors import JobCancelled, JobFailed
from tasks.events import (
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Mark,
    Numbered,
    Queued,
    Started,
    TextDelta,
    Timings,
    Usage,
)
from tasks.reader import BELL, Forgotten
from tests.stack import LIMIT

pytestmark = pytest.mark.anyio

BEFORE = (Queued(), Started("w", "b"))
CANCELLED = Finished(FinishReason.CANCELLED, Usage(0, 0), Timings())
FAILED = Failed(FailureCode.DEADLINE, "Too late.")


def answer(*events: Event, patience: float = 60) -> Answer:
    parts: Any = SimpleNamespace(client=None, put=lambda _: None, patience=patience)
    made = Answer(parts, "j", "m", "m", "r", AsyncExitStack(), parts)

    async def said() -> AsyncIterator[Numbered | Waiting]:
        for seq, event in enumerate(events, 1):
            yield Numbered(seq, event)
        await asyncio.Event().wait()

    made._source = said()
    return made


@pytest.mark.parametrize(("end", "error"), [(CANCELLED, JobCancelled), (FAILED, JobFailed)])
@pytest.mark.parametrize("before", [BEFORE[:1], BEFORE], ids=["waiting", "running"])
async def test_an_end_before_anything_was_sent_is_a_status(
    before: tuple[Event, ...], end: Event, error: type[Exception]
) -> None:
    """Also one that somebody else brought about."""
    with pytest.raises(error) as raised:
        await answer(*before, end).first()
    assert raised.value.job == "j"  # type: ignore[attr-defined]


@pytest.mark.parametrize("events", [(*BEFORE, TextDelta("x"), CANCELLED), BEFORE], ids=["text", "patience is over"])
async def test_what_comes_later_is_a_line_of_the_stream(events: tuple[Event, ...]) -> None:
    """The first text decides, and so does time."""
    await answer(*events, patience=60 if len(events) > 2 else 0.01).first()


async def test_who_waits_longer_than_the_patience_is_told_at_once_for_what() -> None:
    """Also where it was to be next when it was accepted."""
    rung: asyncio.Queue[bytes] = asyncio.Queue()

    async def follow() -> AsyncIterator[Numbered | None]:
        yield Numbered(1, Queued())
        assert await rung.get() == BELL
        yield None
        yield Numbered(2, CANCELLED)

    async def place(job: str, queue: str) -> None:
        return None

    parts: Any = SimpleNamespace(
        client=None,
        put=rung.put_nowait,
        patience=0.01,
        keep_alive=60.0,
        store=SimpleNamespace(place=place),
        waiting=lambda queue, found: Waiting(1, None, "no board is there"),
    )
    made = Answer(parts, "j", "m", "m", "r", AsyncExitStack(), parts)
    made._reader = SimpleNamespace(follow=follow)  # type: ignore[assignment]
    made._source = made._follow()
    await made.first()
    async with asyncio.timeout(LIMIT):
        told = [item async for item in made if isinstance(item, Waiting)]
    assert told == [Waiting(1, None, "no board is there")]


@pytest.mark.parametrize(("read", "told"), [(None, "cancelled"), (Mark(3, 7), "left")], ids=["first", "come back"])
async def test_the_job_of_a_forgotten_answer_is_ended_unless_others_may_read_it(read: Mark | None, told: str) -> None:
    """The one client of an answer has no use for what is left of it; of one that somebody came back to, its grace decides."""
    became: list[str] = []

    async def note(word: str) -> None:
        became.append(word)

    async def forgets() -> AsyncIterator[Numbered | None]:
        raise Forgotten("test")
        yield

    parts: Any = SimpleNamespace(
        client=None,
        in_background=asyncio.create_task,
        cancel=lambda job: note("cancelled"),
        leave=lambda job, reader: note("left"),
    )
    made = Answer(parts, "j", "m", "m", "r", AsyncExitStack(), parts, read)
    made.known = True
    made._reader = SimpleNamespace(follow=forgets)  # type: ignore[assignment]
    assert [item.event async for item in made if isinstance(item, Numbered)] == [
        Failed(FailureCode.ENGINE_LOST, FORGOTTEN)
    ]
    await made.close()
    assert became == [told]
