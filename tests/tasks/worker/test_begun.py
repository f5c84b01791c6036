"""What earlier claims left on record, as the next one reads it."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import stream
from tasks.claims import claim_next
from tasks.events import (
    ChoiceEnded,
    Embedded,
    FinishReason,
    ReasoningDelta,
    Scored,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from tasks.jobs import Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter, RecordedPiece
from tasks.worker.begun import read_begun


async def test_everything_that_was_done_is_found(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said and pieces by their choice, ends, and which vectors and scores were sent."""
    monkeypatch.setattr(stream, "COALESCE", 0.0)
    job = new_job_id()
    store = JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)
    await store.accept(job, "echo", ChatRequest((Message("user", "x"),)), lane=Lane.INTERACTIVE, owner="")
    held = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert held is not None
    ended = ChoiceEnded(0, FinishReason.LENGTH)
    with EventWriter(client, job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.write((TextDelta("One"),), RecordedPiece(0, 1, b"One"))
        writer.write((ended,))
        writer.write((), RecordedPiece(1, 2, b""))
        writer.write((TextDelta("Two", 1),), RecordedPiece(1, 3, b"Two"))
        writer.write((ToolCallStarted(0, "call_a", "f", 1), ToolCallDelta(0, "{}", 1), ReasoningDelta("Hm", 1)))
        writer.write((Embedded(4, b"1234"), Scored(6, 0.5)))
    begun = read_begun(client, job)
    assert (begun.choice(0).sent, begun.choice(0).ended) == ([TextDelta("One")], ended)
    assert begun.choice(0).pieces == [RecordedPiece(0, 1, b"One")]
    assert (begun.choice(1).sent, begun.choice(1).ended) == (
        [TextDelta("Two", 1), ToolCallStarted(0, "call_a", "f", 1), ToolCallDelta(0, "{}", 1), ReasoningDelta("Hm", 1)],
        None,
    )
    assert [piece.token for piece in begun.choice(1).pieces] == [2, 3]
    assert begun.choice(2).pieces == []
    assert begun.done == {4, 6}
