"""An answer that calls a tool, what was asked for it, and how it is kept."""

from __future__ import annotations

from typing import Any

from tasks.events import (
    ChoiceEnded,
    Event,
    FinishReason,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from tasks.job_records import KeptJob
from tasks.jobs import JobState
from tasks.requests import ChatRequest
from tests.api.scripted import END, JOB
from tests.api.site import Site

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}


CALLS = (
    Queued(),
    Started("w", "b"),
    ReasoningDelta("Hm."),
    TextDelta("Let me see."),
    ToolCallStarted(0, "call_a", "weather"),
    ToolCallDelta(0, '{"city":'),
    ToolCallDelta(0, '"Köln"}'),
    ChoiceEnded(0, FinishReason.TOOL_CALLS),
    END,
)


def asked(place: Site) -> ChatRequest:
    """What the relay was asked last."""
    request = place.relay.calls[-1].request
    assert isinstance(request, ChatRequest)
    return request


def kept(place: Site, *events: Event, state: JobState = JobState.FINISHED) -> None:
    """Have the last response be known as it stands after these events; without any, after all of its script."""
    call = place.relay.calls[-1]
    assert call.kept is not None
    assert place.relay.rendering is not None
    said = events or tuple(step for step in place.relay.script if isinstance(step, Event))
    place.world.jobs.stored[JOB] = KeptJob(call.owner, call.kept.data, place.relay.rendering, state, said)
