"""A stream that was lost, gone on with, and the events of a job for those who poll."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tasks.errors import QueueUnavailable
from tasks.events import (
    ChoiceEnded,
    Failed,
    FailureCode,
    FinishReason,
    Mark,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from tasks.jobs import Rendering
from tests.api.scripted import CANCELLED, END, JOB, Hold, Step
from tests.api.site import Site
from tests.stack import LIMIT

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
TWO: list[Step] = [
    *(Queued(), Started("w", "b"), TextDelta("Hel", 0), TextDelta("lo", 0), ChoiceEnded(0, FinishReason.STOP)),
    *(Started("v", "b"), TextDelta("Bye", 1), ChoiceEnded(1, FinishReason.LENGTH)),
]
MESSAGE: dict[str, Any] = CHAT | {"max_tokens": 9, "thinking": {"type": "adaptive"}}
CALL: list[Step] = [
    *(Queued(), Started("w", "b"), ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Let me see.")),
    *(ToolCallStarted(0, "call_a", "weather"), ToolCallDelta(0, "{}"), ChoiceEnded(0, FinishReason.TOOL_CALLS)),
]
STREAMS: dict[str, tuple[str, dict[str, Any], list[Step]]] = {
    "chat": ("/v1/chat/completions", CHAT | {"n": 2}, [*TWO, END]),
    "usage": ("/v1/chat/completions", CHAT | {"n": 2, "stream_options": {"include_usage": True}}, [*TWO, END]),
    "completion": ("/v1/completions", {"prompt": "Hi", "n": 2, "stream": True}, [*TWO, END]),
    "failed": ("/v1/chat/completions", CHAT | {"n": 2}, [*TWO, Failed(FailureCode.ENGINE_LOST, "Gone.")]),
    "message": ("/v1/messages", MESSAGE, [*CALL, END]),
    "failed message": ("/v1/messages", MESSAGE, [*CALL, Failed(FailureCode.ENGINE_LOST, "Gone.")]),
    "cancelled": ("/v1/chat/completions", CHAT | {"n": 2}, [*TWO, CANCELLED]),
}


def frames(text: str) -> list[str]:
    """Whole frames, without comments."""
    lines = "\n".join(line for line in text.split("\n") if not line.startswith(":"))
    return [frame for frame in lines.split("\n\n") if frame]


def id_of(frame: str) -> str:
    match = re.match(r"id: (\S+)\n", frame)
    assert match is not None, frame
    return match[1]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_goes_on_behind_any_of_its_frames(place: Site, kind: str) -> None:
    """To the byte: wherever it was cut, the two parts are the frames of one answer, each once."""
    path, body, script = STREAMS[kind]
    place.relay.play(*script)
    said = frames(place.http.post(path, json=body).text)
    assert len(said) > 5 and len({id_of(frame) for frame in said}) == len(said)
    events = f"/v1/jobs/{JOB}/events"
    assert frames(place.http.get(events).text) == said
    for index, frame in enumerate(said[:-1], 1):
        assert frames(place.http.get(events, params={"after": id_of(frame)}).text) == said[index:]
        assert frames(place.http.get(events, headers={"last-event-id": id_of(frame)}).text) == said[index:]


def test_a_stream_that_was_read_to_its_end_has_no_more(place: Site) -> None:
    """204, at which browsers stop connecting anew; while the job goes on they are to wait."""
    place.http.post("/v1/chat/completions", json=CHAT)
    for place_read in ("6", "7", "6-0"):
        assert place.http.get(f"/v1/jobs/{JOB}/events?after={place_read}").status_code == 204
    assert place.http.get(f"/v1/jobs/{JOB}/events?after=6.1").text == "id: 6-0\ndata: [DONE]\n\n"


def test_the_header_wins(place: Site) -> None:
    """A browser connects anew to the address it began with, and says in the header how far it came."""
    place.http.post("/v1/chat/completions", json=CHAT)
    reply = place.http.get(f"/v1/jobs/{JOB}/events?after=2", headers={"last-event-id": "6-0.1"})
    assert [id_of(frame) for frame in frames(reply.text)] == ["6-0"]
    assert reply.headers["x-job-id"] == JOB


@pytest.mark.parametrize("after", ["x", "-1", "1.2.3", "1-", "1.2-3", "1" * 16, "1-" + "1" * 20, "٣"])
def test_what_is_no_id_is_refused(place: Site, after: str) -> None:
    """By name."""
    reply = place.http.get(f"/v1/jobs/{JOB}/events", params={"after": after})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "after")


@pytest.mark.parametrize(("after", "read"), [("4-7", Mark(4, 7)), ("4-7.1", Mark(4, 7)), ("4", None), ("4.1", None)])
def test_an_id_says_which_answer_was_read(place: Site, after: str, read: Mark | None) -> None:
    """So that a record with another under that number is no answer to it; a number alone goes on with whatever is there."""
    place.http.post("/v1/chat/completions", json=CHAT)
    place.http.get(f"/v1/jobs/{JOB}/events?after={after}")
    assert place.relay.read == read


def test_the_end_of_another_answer_is_not_the_end_that_was_read(place: Site) -> None:
    """The stream says what became of it: 204 would make half an answer look whole."""
    place.http.post("/v1/chat/completions", json=CHAT)
    for after in ("6-7", "7-7"):
        assert place.http.get(f"/v1/jobs/{JOB}/events?after={after}").status_code == 200


def test_a_break_is_no_part_of_the_answer(place: Site) -> None:
    """What ends the stream but not the job has no id, and what was held back then is not lost to whoever comes back."""
    script = [*STREAMS["chat"][2][:-1]]
    place.relay.play(*script, QueueUnavailable("gone"))
    said = frames(place.http.post("/v1/chat/completions", json=CHAT | {"n": 2}).text)
    assert said[-1].startswith("data: ") and '"queue_unavailable"' in said[-1]
    rendering = place.relay.rendering
    place.relay.play(*script, END)
    place.relay.rendering = rendering
    rest = frames(place.http.get(f"/v1/jobs/{JOB}/events", params={"after": id_of(said[-2])}).text)
    assert [*said[:-1], *rest] == frames(place.http.get(f"/v1/jobs/{JOB}/events").text)
    assert sum('"finish_reason":"length"' in frame for frame in rest) == 1


def test_an_answer_in_one_piece_has_no_stream(place: Site) -> None:
    """Such as vectors; its events can be read all the same."""
    reply = place.http.get(f"/v1/jobs/{JOB}/events")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_stream")
    assert place.relay.answer().closed.wait(LIMIT)


@pytest.mark.parametrize("rendering", [Rendering("sanskrit", b""), Rendering("openai", b"{}")])
def test_a_stream_of_another_version_is_not_guessed_at(place: Site, rendering: Rendering) -> None:
    """A front that is not there, or what it kept in a form that is not known."""
    place.relay.rendering = rendering
    reply = place.http.get(f"/v1/jobs/{JOB}/events")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "unreadable_record")
    assert "version" in reply.json()["error"]["message"]


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_an_unknown_job_has_no_events(place: Site, accept: str) -> None:
    """A 404 like every look at it, also for what cannot be an id."""
    for job in ("a" * 22, "nothing"):
        reply = place.http.get(f"/v1/jobs/{job}/events", headers={"accept": accept})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "job_not_found")


def test_events_are_shown_with_names(place: Site) -> None:
    """To whoever asks for JSON, in no front's dialect."""
    likely = TokenLogprob(b"\xc3", -0.5, ((b"\xc3", -0.5), (b"i", -1.0)))
    place.world.jobs.said = (Queued(), Started("w", "b"), TextDelta("Hi"), TextDelta("!", 0, (likely,)), END)
    reply = place.http.get(f"/v1/jobs/{JOB}/events?after=2", headers={"accept": "application/json"})
    page = reply.json()
    assert page["data"][0] == {"id": 3, "type": "text", "text": "Hi", "choice": 0}
    assert page["data"][1]["logprobs"] == [{"token": "\ufffd", "logprob": -0.5, "top": [["\ufffd", -0.5], ["i", -1.0]]}]
    assert (page["data"][2]["type"], page["data"][2]["usage"]["completion_tokens"]) == ("finished", 3)
    assert (page["has_more"], page["ended"], len(page["data"])) == (False, True, 3)
    assert isinstance(END.usage, Usage)


def test_a_client_may_ask_for_time_to_come_back(place: Site) -> None:
    """In its own words, no longer than the settings allow; the answer says how long."""
    for asked, granted in (("30s", 30.0), ("500ms", 0.5), ("20m", 300.0)):
        place.relay.play(*STREAMS["chat"][2])
        reply = place.http.post("/v1/chat/completions", json=CHAT, headers={"x-stream-grace": asked})
        assert (place.relay.calls[0].grace, reply.headers["x-stream-grace"]) == (granted, f"{granted:g}")
    place.relay.play(*STREAMS["chat"][2])
    assert "x-stream-grace" not in place.http.post("/v1/chat/completions", json=CHAT).headers
    assert place.relay.calls[0].grace == 0


@pytest.mark.parametrize(("body", "grace"), [(CHAT, "soon"), (CHAT | {"stream": False}, "30s")])
def test_a_grace_that_cannot_be_is_refused(place: Site, body: dict[str, Any], grace: str) -> None:
    """What is no time, and an answer of which its client knows nothing before it is whole."""
    reply = place.http.post("/v1/chat/completions", json=body, headers={"x-stream-grace": grace})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-stream-grace")
    assert place.relay.calls == []


def test_whoever_reads_on_is_closed_like_anybody(place: Site) -> None:
    """So that the job learns that nobody reads it any more."""
    place.http.post("/v1/chat/completions", json=CHAT)
    rendering = place.relay.rendering
    place.relay.play(Queued(), TextDelta("Hi"), Hold())
    place.relay.rendering = rendering
    with place.http.stream("GET", f"/v1/jobs/{JOB}/events") as reply:
        assert '"Hi"' in "".join(line for line, _ in zip(reply.iter_lines(), range(5), strict=False))
    assert place.relay.answer().closed.wait(LIMIT)
