"""Jobs that nobody waits for: made of the bodies of endpoints, and their answers."""

from __future__ import annotations

import array
from typing import Any

import pytest

from tasks.api_keys import Scope
from tasks.errors import QueueFull
from tasks.events import (
    ChoiceEnded,
    Embedded,
    Event,
    Failed,
    FailureCode,
    FinishReason,
    Queued,
    Scored,
    Started,
    TextDelta,
)
from tasks.jobs import JobState, Lane
from tasks.requests import ChatRequest
from tests.api.scripted import CANCELLED, END, JOB
from tests.api.scripted_services import view
from tests.api.site import Site

MESSAGES = [{"role": "user", "content": "Hi"}]
SAID: tuple[Event, ...] = (
    *(Queued(), Started("w", "b"), TextDelta("Hello"), ChoiceEnded(0, FinishReason.LENGTH), END),
)
VECTOR, OTHER = (array.array("f", numbers).tobytes() for numbers in ([0.5, -0.25], [1.0, 2.0]))
RANKED: tuple[Event, ...] = (Queued(), Scored(0, 0.25), Scored(1, 0.75), END)
ENDPOINTS: dict[str, tuple[dict[str, Any], tuple[Event, ...]]] = {
    "/v1/chat/completions": ({"messages": MESSAGES, "n": 2, "max_tokens": 3}, SAID),
    "/v1/completions": ({"prompt": ["a", "b"]}, SAID),
    "/v1/embeddings": ({"input": "a", "encoding_format": "base64"}, (Queued(), Embedded(0, VECTOR), END)),
    "/v1/responses": ({"input": "Hi", "store": False}, SAID),
    "/v1/messages": ({"messages": MESSAGES, "max_tokens": 3}, SAID),
    "/api/chat": ({"model": "tiny", "messages": MESSAGES}, SAID),
    "/api/generate": ({"model": "tiny", "prompt": "Hi"}, SAID),
    "/api/embed": ({"model": "tiny", "input": ["a", "b"]}, (Queued(), Embedded(0, VECTOR), Embedded(1, OTHER), END)),
    "/api/embeddings": ({"model": "tiny", "prompt": "a"}, (Queued(), Embedded(0, VECTOR), END)),
    "/v1/rerank": ({"query": "q", "documents": ["a", {"text": "b"}], "return_documents": True}, RANKED),
    "/v1/rerank as texts": ({"query": "q", "texts": ["a", "b"], "top_n": 1, "return_text": True}, RANKED),
}
PASSING = ("created", "created_at", "completed_at")
"""What tells when, and so differs."""


def lasting(answer: Any) -> Any:
    """It, with nothing for what passes."""
    return {k: None if k in PASSING else v for k, v in answer.items()} if isinstance(answer, dict) else answer


def ended(place: Site, state: JobState, *said: Event) -> None:
    """The job that was made last has said this, and ended so."""
    place.world.jobs.job = view(state=state, ended_at=1.0)
    place.world.jobs.said = said
    place.world.jobs.rendering = place.relay.rendering


@pytest.mark.parametrize("case", ENDPOINTS)
def test_the_result_is_what_the_endpoint_would_have_answered(place: Site, case: str) -> None:
    """In every field, whoever asked and how."""
    body, said = ENDPOINTS[case]
    endpoint = case.split()[0]
    place.relay.play(*said)
    direct = place.http.post(endpoint, json=body | {"stream": False})
    assert direct.status_code == 200
    wanted = place.relay.calls[0].request
    place.relay.play(*said)
    made = place.http.post("/v1/jobs", json={"endpoint": endpoint, "body": body})
    assert made.status_code == 202
    asked = place.relay.calls[0]
    assert (asked.request, asked.lane, asked.attended) == (wanted, Lane.BACKGROUND, False)
    assert place.relay.answer().closed.is_set()
    ended(place, JobState.FINISHED, *said)
    result = place.http.get(made.json()["links"]["result"])
    assert result.status_code == 200
    assert lasting(result.json()) == lasting(direct.json())


def test_a_job_is_told_with_its_links(place: Site) -> None:
    """So that a client need not put addresses together."""
    made = place.http.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": {"messages": MESSAGES}})
    links = made.json()["links"]
    assert (made.json()["object"], made.json()["id"], made.headers["location"]) == ("job", JOB, links["self"])
    assert links == {
        "self": f"/v1/jobs/{JOB}",
        "events": f"/v1/jobs/{JOB}/events",
        "result": f"/v1/jobs/{JOB}/result",
        "cancel": f"/v1/jobs/{JOB}/cancel",
    }
    place.relay.play(*SAID)
    assert '"content":"Hello"' in place.http.get(links["events"]).text


@pytest.mark.parametrize("lane", ["interactive", "batch"])
def test_a_lane_may_be_chosen(place: Site, lane: str) -> None:
    """Any of the three."""
    made = place.http.post("/v1/jobs", json={"endpoint": "/v1/completions", "body": {"prompt": "a"}, "lane": lane})
    assert (made.status_code, place.relay.calls[0].lane) == (202, Lane(lane))


def test_the_lane_of_batches_needs_their_scope(place: Site) -> None:
    """As batches do."""
    place.world.api_keys.make("k", Scope.INFERENCE)
    ask = {"endpoint": "/v1/completions", "body": {"prompt": "a"}}
    headers = {"authorization": "Bearer k"}
    assert place.http.post("/v1/jobs", json=ask, headers=headers).status_code == 202
    assert place.http.post("/v1/jobs", json=ask | {"lane": "batch"}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"body": {}}, "endpoint"),
        ({"endpoint": "/v1/models", "body": {}}, "endpoint"),
        ({"endpoint": "/v1/completions"}, "body"),
        ({"endpoint": "/v1/completions", "body": {}}, "body.prompt"),
        ({"endpoint": "/v1/completions", "body": {"prompt": "a", "n": 99}}, "body.n"),
        ({"endpoint": "/v1/completions", "body": {"prompt": "a"}, "lane": "fast"}, "lane"),
        ({"endpoint": "/v1/completions", "body": {"prompt": "a"}, "webhook": "http://8.8.8.8"}, "webhook"),
        ({"endpoint": "/v1/responses", "body": {"input": "a", "background": True}}, "body.background"),
        ({"endpoint": "/v1/messages", "body": {"messages": MESSAGES}}, "body.max_tokens"),
        (
            {"endpoint": "/api/chat", "body": {"model": "tiny", "messages": MESSAGES, "keep_alive": 1}},
            "body.keep_alive",
        ),
        ({"endpoint": "/api/generate", "body": {"model": "tiny"}}, "body.prompt"),
        ({"endpoint": "/api/embed", "body": {"model": "tiny"}}, "body.input"),
        ({"endpoint": "/api/embeddings", "body": {"model": "tiny", "prompt": "a", "keep_alive": 0}}, "body.keep_alive"),
        ({"endpoint": "/v1/rerank", "body": {"query": "q", "texts": []}}, "body.texts"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(place: Site, body: dict[str, Any], param: str) -> None:
    """Before there is a job."""
    reply = place.http.post("/v1/jobs", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert place.relay.calls == []


def test_a_full_queue_refuses_it_like_any_request(place: Site) -> None:
    """With the time until there is room."""
    place.relay.refuse(QueueFull("tiny", 64, retry_after=7.0))
    reply = place.http.post("/v1/jobs", json={"endpoint": "/v1/completions", "body": {"prompt": "a"}})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")


def test_a_job_that_goes_on_has_no_result_yet(place: Site) -> None:
    """A conflict that says when to come again; with `wait` it is waited for."""
    place.world.jobs.job = view(state=JobState.RUNNING)
    reply = place.http.get(f"/v1/jobs/{JOB}/result")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "job_not_ended")
    assert reply.headers["retry-after"] == "1"
    place.http.post("/v1/jobs", json={"endpoint": "/v1/completions", "body": {"prompt": "a"}})
    ended(place, JobState.FINISHED, *SAID)
    place.world.jobs.next = place.world.jobs.job
    place.world.jobs.job = view(state=JobState.RUNNING)
    assert place.http.get(f"/v1/jobs/{JOB}/result?wait=60s").json()["choices"][0]["text"] == "Hello"
    assert 10 < place.world.jobs.waits[0] <= 60  # what is left of it when the job is looked at


@pytest.mark.parametrize(
    ("endpoint", "path"), [("/v1/messages", ("error", "message")), ("/api/chat", ("error",)), ("/v1/completions", None)]
)
def test_a_failure_is_told_as_the_endpoint_tells_it(place: Site, endpoint: str, path: tuple[str, ...] | None) -> None:
    """With its status, and in its words."""
    place.http.post("/v1/jobs", json={"endpoint": endpoint, "body": ENDPOINTS[endpoint][0]})
    ended(place, JobState.FAILED, Queued(), Failed(FailureCode.CONTEXT_TOO_LONG, "Too long."))
    reply = place.http.get(f"/v1/jobs/{JOB}/result")
    assert (reply.status_code, reply.headers["x-job-id"]) == (400, JOB)
    if path is None:
        assert reply.json()["error"]["code"] == "context_length_exceeded"
        return
    told = reply.json()
    for part in path:
        told = told[part]
    assert "Too long." in told and "code" not in reply.text
    ended(place, JobState.CANCELLED, Queued(), CANCELLED)
    assert place.http.get(f"/v1/jobs/{JOB}/result").status_code == 409


@pytest.mark.parametrize(
    ("endpoint", "said_of_it"),
    [
        ("/v1/embeddings", '"AAAAPwAAgL4="'),
        ("/v1/rerank", '"relevance_score":0.75'),
        ("/api/embed", "[0.5,-0.25]"),
        ("/api/embeddings", "[0.5,-0.25]"),
    ],
)
def test_what_is_said_in_one_piece_has_a_result_and_no_stream(place: Site, endpoint: str, said_of_it: str) -> None:
    """The page of events is there all the same."""
    body, said = ENDPOINTS[endpoint]
    place.http.post("/v1/jobs", json={"endpoint": endpoint, "body": body})
    reply = place.http.get(f"/v1/jobs/{JOB}/events")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_stream")
    ended(place, JobState.FINISHED, *said)
    assert said_of_it in place.http.get(f"/v1/jobs/{JOB}/result").text.replace(" ", "")


def test_a_streamed_answer_has_a_result_as_well(place: Site) -> None:
    """Whoever lost the stream may take the whole."""
    place.relay.play(*SAID)
    place.http.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True})
    assert isinstance(place.relay.calls[0].request, ChatRequest)
    ended(place, JobState.FINISHED, *SAID)
    assert place.http.get(f"/v1/jobs/{JOB}/result").json()["choices"][0]["message"]["content"] == "Hello"


def test_an_unknown_job_has_no_result(place: Site) -> None:
    """Nor has what cannot be an id, or an answer of which it was not kept how it is said."""
    for job in ("a" * 22, "nothing"):
        assert place.http.get(f"/v1/jobs/{job}/result").json()["error"]["code"] == "job_not_found"
    ended(place, JobState.FINISHED, *SAID)
    place.world.jobs.rendering = None
    assert place.http.get(f"/v1/jobs/{JOB}/result").json()["error"]["code"] == "no_result"
