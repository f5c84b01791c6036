"""A response as a stream, whatever its job says."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.errors import CANCELLED, Problem, of_failed
from api.openai.responses.head import Head
from api.openai.responses.stored import keep, writer_of
from api.openai.responses.tools import Caller
from api.openai.responses.writer import ResponseWriter, response_of
from tasks.events import (
    ChoiceEnded,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    joined,
)
from tasks.job_records import KeptJob
from tasks.jobs import JobState
from tests.api.scripted import END, JOB, TIMINGS, USAGE, hello
from tests.api.site import Site
from tests.stack import LIMIT

TEXTS = st.text(st.sampled_from("aä\u2028\x85\n\"'{}"), max_size=4)
SAID = st.one_of(
    st.builds(TextDelta, TEXTS, st.sampled_from((0, 0, 0, 1)), st.sampled_from(((), (TokenLogprob(b"\xc3", -0.5),)))),
    st.builds(ReasoningDelta, TEXTS),
    st.builds(ToolCallStarted, st.integers(0, 2), st.sampled_from(("a", "b")), st.sampled_from(("f", "free", "ns__f"))),
    st.builds(ToolCallDelta, st.integers(0, 2), st.sampled_from(("", '{"input":', '"x"}', "{}"))),
)
ENDS = st.sampled_from(
    (
        (END,),
        (ChoiceEnded(0, FinishReason.TOOL_CALLS), END),
        (ChoiceEnded(0, FinishReason.LENGTH), Finished(FinishReason.LENGTH, USAGE, TIMINGS)),
        (Finished(FinishReason.CANCELLED, USAGE, TIMINGS),),
        (Failed(FailureCode.ENGINE_LOST, "It died."),),
    )
)
SCRIPTS = st.builds(
    lambda queued, said, end: (*queued, *said, *end),
    st.sampled_from(((), (Queued(),), (Queued(), Started("w", "b")), (Queued(), Started("w", "b"), Started("w", "b")))),
    st.lists(SAID, max_size=8),
    ENDS,
)


def head(**changed: Any) -> Head:
    """Of a response whose model was given three tools."""
    fields: dict[str, Any] = {
        "job": JOB,
        "created": 1,
        "background": False,
        "streamed": True,
        "summary": False,
        "logprobs": 0,
        "callers": {"free": Caller("free", custom=True), "ns__f": Caller("f", "ns")},
        "fields": {"model": "tiny"},
    }
    return Head(**(fields | changed))


HEADS = st.builds(head, background=st.booleans(), summary=st.booleans(), logprobs=st.sampled_from((None, 0)))


def written(writer: ResponseWriter, events: tuple[Event, ...]) -> list[dict[str, Any]]:
    """The frames that a writer makes of events, as it is told them."""
    data = b""
    for event in events:
        match event:
            case Failed():
                data += writer.problem(of_failed(event))
            case Finished(reason=FinishReason.CANCELLED):
                data += writer.problem(CANCELLED)
            case _:
                data += writer.event(event)
    return read(data)


def read(data: bytes) -> list[dict[str, Any]]:
    """The frames of a stream; each is one line of data behind its name."""
    assert not any(each in data for each in (b"\xc2\x85", b"\xe2\x80\xa8"))
    frames = []
    for part in data.decode().removesuffix("\n\n").split("\n\n") if data else ():
        lines = [line for line in part.split("\n") if not line.startswith(("id: ", ":"))]
        name, line = lines
        frame = json.loads(line.removeprefix("data: "))
        assert name == f"event: {frame['type']}"
        frames.append(frame)
    return frames


@settings(max_examples=150, deadline=None)
@given(HEADS, SCRIPTS)
def test_every_stream_is_one_that_clients_can_follow(of: Head, events: tuple[Event, ...]) -> None:
    """Numbers without a gap, items opened and closed in order, deltas that join to what is done, and an end that has it all."""
    frames = written(ResponseWriter(of), events)
    assert [frame["sequence_number"] for frame in frames] == list(range(len(frames)))
    assert frames[0]["type"] == "response.created"
    assert frames[0]["response"]["output"] == []
    done: list[dict[str, Any]] = []
    texts: dict[str, str] = {}
    opened = 0
    for frame in frames:
        kind = frame["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert frame["output_index"] == opened
            opened += 1
            assert frame["item"]["status"] == "in_progress"
        elif kind == "output_item.done":
            assert frame["output_index"] == len(done)
            done.append(frame["item"])
        elif kind.endswith(".delta"):
            assert frame["output_index"] == opened - 1 == len(done)
            texts[frame["item_id"]] = texts.get(frame["item_id"], "") + frame["delta"]
        elif kind.endswith(".done") and not kind.endswith("part.done"):
            whole = frame.get("text", frame.get("arguments", frame.get("input")))
            assert whole == texts.get(frame["item_id"], "")
    last = frames[-1]["response"]
    assert last["output"][: len(done)] == done
    assert len(last["output"]) == opened
    assert all(item["status"] == "incomplete" for item in last["output"][len(done) :])
    assert not any(item["status"] == "in_progress" for item in last["output"])


@settings(max_examples=80, deadline=None)
@given(HEADS, SCRIPTS)
def test_a_response_is_the_same_however_it_is_asked_for(of: Head, events: tuple[Event, ...]) -> None:
    """At the end of a stream, as an object, and from what was kept of it."""
    frames = written(ResponseWriter(of), events)
    body, ended = response_of(of, events)
    assert ended
    # What a cancelled job had cost is known to who asks for it later.
    assert body | {"usage": frames[-1]["response"]["usage"]} == frames[-1]["response"]
    assert written(writer_of(keep(of).head), events) == frames


@settings(max_examples=50, deadline=None)
@given(HEADS, st.lists(SAID, max_size=8))
def test_a_response_can_be_asked_for_while_it_goes_on(of: Head, said: list[Event]) -> None:
    """It has what was said so far, however that was cut, and has not ended."""
    body, ended = response_of(of, (Started("w", "b"), *said))
    together: list[Event] = []
    for event in said:
        both = joined(together[-1], event) if together else None
        together = [*together[:-1], both] if both is not None else [*together, event]
    assert (body["status"], body["usage"], ended) == ("in_progress", None, False)
    assert response_of(of, (Started("w", "b"), *together))[0] == body


def test_a_stream_that_breaks_loses_nothing(place: Site) -> None:
    """The error repeats the last number, so going on behind it is going on behind what was read."""
    writer = ResponseWriter(head())
    frames = read(writer.event(Queued()) + writer.broken(Problem(503, "server_stopping", "Stopping.")))
    assert frames[-1] == {
        "type": "error",
        "sequence_number": 1,
        "code": "server_stopping",
        "message": "Stopping.",
        "param": None,
    }
    assert read(writer.event(TextDelta("x")))[0]["sequence_number"] == 2


@pytest.mark.parametrize("after", [-1, 0, 1, 4, 5, 6, 50])
def test_a_stream_goes_on_behind_any_number(place: Site, after: int) -> None:
    """With the same frames and ids, also where several were made of one event."""
    body = {"input": "Hi", "stream": True, "background": True}
    first = place.http.post("/v1/responses", json=body)
    keep_it(place)
    query = f"&starting_after={after}" if after >= 0 else ""
    again = place.http.get(f"/v1/responses/resp_{JOB}?stream=true{query}")
    frames = [part for part in first.text.split("\n\n") if part]
    assert [part for part in again.text.split("\n\n") if part] == frames[after + 1 :]
    assert place.relay.answers[-1].closed.wait(LIMIT)


def test_a_stream_is_gone_on_with_as_any_other(place: Site) -> None:
    """By the ids of its frames, at its job."""
    first = place.http.post("/v1/responses", json={"input": "Hi", "stream": True})
    frames = [part for part in first.text.split("\n\n") if part]
    for place_in, frame in enumerate(frames[:-1]):
        read_to = frame.split("\n")[0].removeprefix("id: ")
        again = place.http.get(f"/v1/jobs/{JOB}/events", headers={"last-event-id": read_to})
        assert [part for part in again.text.split("\n\n") if part] == frames[place_in + 1 :]


def keep_it(place: Site) -> None:
    """From now on the last response can be asked for, with all that was said."""
    asked = place.relay.calls[-1]
    assert asked.kept is not None
    assert place.relay.rendering is not None
    events = tuple(step for step in place.relay.script if isinstance(step, Event))
    place.world.jobs.stored[JOB] = KeptJob(
        asked.owner, asked.kept.data, place.relay.rendering, JobState.FINISHED, events
    )


def test_a_client_without_a_stream_gets_the_same(place: Site) -> None:
    """Whole, in one piece, with the job in a header."""
    place.relay.play(*hello())
    whole: httpx.Response = place.http.post("/v1/responses", json={"input": "Hi"})
    frames = read(place.http.post("/v1/responses", json={"input": "Hi", "stream": True}).content)
    assert whole.headers["x-job-id"] == JOB
    assert whole.json() | {"created_at": 0, "completed_at": 0} == frames[-1]["response"] | {
        "created_at": 0,
        "completed_at": 0,
    }
