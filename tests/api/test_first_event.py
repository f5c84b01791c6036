"""What a stream waits for before it has a status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from api.answer import Answer, Waiting
from tasks.errors import JobCancelled, JobFailed
from tasks.events import (
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Numbered,
    Queued,
    Started,
    TextDelta,
    Timings,
    Usage,
)

pytestmark = pytest.mark.anyio

BEFORE = (Queued(), Started("w", "b"))
CANCELLED = Finished(FinishReason.CANCELLED, Usage(0, 0), Timings())
FAILED = Failed(FailureCode.DEADLINE, "Too late.")


def answer(*events: Event) -> Answer:
    parts: Any = SimpleNamespace(client=None)
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
        await answer(*before, end).first(patience=60)
    assert raised.value.job == "j"  # type: ignore[attr-defined]


@pytest.mark.parametrize("events", [(*BEFORE, TextDelta("x"), CANCELLED), BEFORE], ids=["text", "patience is over"])
async def test_what_comes_later_is_a_line_of_the_stream(events: tuple[Event, ...]) -> None:
    """The first text decides, and so does time."""
    await answer(*events).first(patience=60 if len(events) > 2 else 0.01)
