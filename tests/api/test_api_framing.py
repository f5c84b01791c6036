"""Streams on the wire, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import openai
import pytest
from sse_starlette.sse import SendTimeoutError

from api.answer import Waiting
from api.framing import Sending
from tasks.errors import QueueUnavailable
from tasks.events import Failed, FailureCode, Queued, Started, TextDelta
from tests.api.scripted import CANCELLED, END, FirstHolds, Hold, StartHolds, Step
from tests.api.site import RequestLines, Site, site
from tests.stack import LIMIT

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TALKING: list[Step] = [Queued(), Started("w", "b"), TextDelta("Hel")]


def request(body: dict[str, Any], headers: bytes = b"") -> bytes:
    """A chat request as bytes."""
    data = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + headers
    return head + b"content-length: %d\r\n\r\n" % len(data) + data


def stream(place: Site, **body: Any) -> list[str]:
    """The lines of a streamed answer that are not empty."""
    reply = place.http.post("/v1/chat/completions", json=CHAT | {"stream": True} | body)
    assert reply.status_code == 200, reply.text
    return [line for line in reply.text.split("\n") if line]


def test_a_stream_has_the_headers_proxies_need(place: Site) -> None:
    """So that nothing between client and server keeps the text back."""
    with place.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
        reply.read()
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "content-length" not in reply.headers
    assert reply.headers["x-job-id"]


def test_waiting_is_told_in_comments(place: Site) -> None:
    """A waiting client sees its place, a silent one that the line is alive; readers skip both."""
    why = "its model is being loaded"
    place.relay.play(
        *(Waiting(3, 40.2), Waiting(1), Waiting(None), Waiting(1, 2.0, why), Waiting(None, None, why)),
        TextDelta("x"),
        END,
    )
    assert stream(place)[:3] == [": position 3, about 41 s", ": position 1", ": keep-alive"]
    assert stream(place)[3:5] == [f": position 1, about 2 s, {why}", f": {why}"]


def test_comments_between_frames_are_nothing_to_openais_client(place: Site) -> None:
    """It takes an empty line behind a frame with an id for one more event, and what has no data for broken JSON."""
    place.relay.play(TextDelta("Hel"), Waiting(1), Waiting(None), TextDelta("lo"), Waiting(None), END)
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key="x", max_retries=0) as client:
        chunks = list(client.chat.completions.create(model="tiny", stream=True, **CHAT))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"


@pytest.mark.parametrize(
    ("ending", "code", "says"),
    [
        (Failed(FailureCode.ENGINE_LOST, "The worker died."), "engine_lost", "The worker died."),
        (CANCELLED, "job_cancelled", "The job was cancelled."),
        (QueueUnavailable("gone"), "queue_unavailable", "cannot be reached"),
        (ZeroDivisionError("secret"), "internal_error", "The server made an error"),
    ],
)
def test_a_failure_past_the_first_byte_is_the_last_line(place: Site, ending: Step, code: str, says: str) -> None:
    """The status is long sent; the error is data, and no [DONE] pretends that all is well."""
    place.relay.play(*TALKING, ending)
    last = stream(place)[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == code
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "secret" not in last


def test_an_answer_without_an_end_is_an_error(place: Site) -> None:
    """A stream that merely stops would look complete to many clients."""
    place.relay.play(*TALKING)
    assert '"internal_error"' in stream(place)[-1]


@pytest.mark.parametrize("script", [[*TALKING, END], [*TALKING, CANCELLED], [*TALKING, ZeroDivisionError()]])
@pytest.mark.parametrize("stream", [True, False])
def test_every_answer_is_closed_at_its_end(place: Site, script: list[Step], stream: bool) -> None:
    """However it ended."""
    place.relay.play(*script)
    place.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert place.relay.answer().closed.wait(LIMIT)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_mid_answer_closes_it(place: Site, stream: bool, lines: RequestLines) -> None:
    """Streaming or not, its job is ended, and the log says 499."""
    place.relay.play(*TALKING, Hold())
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(request(CHAT | {"stream": stream}, b"x-request-id: leaver\r\n"))
        answer = place.relay.answer()
        assert answer.reached.wait(LIMIT)
        if stream:
            seen = b""
            while b'"Hel"' not in seen:
                seen += sock.recv(65536)
    assert answer.closed.wait(LIMIT)
    assert lines.next("leaver").getMessage() == "POST /v1/chat/completions 499"


@pytest.mark.parametrize("behind", [1, 5000], ids=["one", "too many"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_further_requests_behind_has_left(
    place: Site, stream: bool, behind: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for its turn on the line does not hide that nobody is there, nor is it answered to nobody."""
    place.relay.play(*TALKING, Hold())
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(request(CHAT | {"stream": stream}) + request(CHAT) * behind)
        answer = place.relay.answer()
        assert answer.reached.wait(LIMIT)
    assert answer.closed.wait(LIMIT)
    assert place.http.get("/healthz").status_code == 200
    assert len(place.relay.answers) == 1
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_closes_its_half_has_left(place: Site, stream: bool) -> None:
    """One that is gone says no more than that, and its job must not run on: so nobody is answered half closed."""
    place.relay.play(*TALKING, Hold())
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(request(CHAT | {"stream": stream}))
        answer = place.relay.answer()
        assert answer.reached.wait(LIMIT)
        sock.shutdown(socket.SHUT_WR)
        assert answer.closed.wait(LIMIT)


def test_a_client_that_left_before_the_first_byte_closes_the_answer(place: Site) -> None:
    """Its stream is begun and ended without ever having been read."""
    place.relay.play(Hold())
    sock = socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT)
    sock.sendall(request(CHAT | {"stream": True}))
    sock.close()
    assert place.relay.answer().closed.wait(LIMIT)


def test_an_answer_that_cannot_be_begun_is_closed(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect between the accepted job and its response does not leave a job that nobody reads."""
    monkeypatch.setattr("api.openai.routes.writer_of", lambda head: 1 / 0)
    assert place.http.post("/v1/chat/completions", json=CHAT).status_code == 500
    assert place.relay.answer().closed.wait(LIMIT)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_while_its_job_is_being_accepted_ends_that(place: Site, streamed: bool) -> None:
    """What waits for the first event, or for a model to load, is cancelled with its client, and so is the job."""
    place.relay.play(StartHolds())
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(request(CHAT | {"stream": streamed}))
        assert place.relay.holding.wait(LIMIT)
    assert place.relay.start_cancelled.wait(LIMIT)


def test_a_client_that_leaves_before_anything_was_said_ends_its_job(place: Site) -> None:
    """Its stream waits for what decides the status."""
    place.relay.play(FirstHolds())
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(request(CHAT | {"stream": True}))
        answer = place.relay.answer()
        assert answer.reached.wait(LIMIT)
    assert answer.closed.wait(LIMIT)
    assert not answer.known


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/api/chat", CHAT | {"model": "tiny"}), ("/v1/responses", {"input": "Hi"})],
)
def test_a_stream_that_fails_before_anything_was_said_is_a_status(place: Site, path: str, body: dict[str, Any]) -> None:
    """Its client reads an error as of any other request, and no stream."""
    place.relay.play(Queued(), Started("w", "b"), Failed(FailureCode.CONTEXT_TOO_LONG, "It is too long.", "messages"))
    reply = place.http.post(path, json=body | {"stream": True})
    assert (reply.status_code, reply.headers["content-type"]) == (400, "application/json")
    assert "It is too long." in reply.text
    assert place.relay.answer().closed.wait(LIMIT)


def test_a_client_that_leaves_in_mid_body_starts_nothing(place: Site) -> None:
    """Half a request is none."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(request(CHAT)[:-10])
    assert place.http.get("/healthz").status_code == 200
    assert place.relay.calls == []


def test_a_client_that_stops_reading_is_gone_in_the_end() -> None:
    """Once its buffers are full and stay so, its job is ended like that of any client that left."""
    with site(stalled_client=0.2, drain=0) as place:
        place.relay.play(*TALKING, *[TextDelta("x" * 60_000)] * 400, Hold())
        with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
            sock.sendall(request(CHAT | {"stream": True}))
            assert place.relay.answer().closed.wait(LIMIT)


@pytest.mark.anyio
async def test_only_one_thing_that_is_sent_may_take_too_long() -> None:
    """Silence between two may last, and each is counted from when it was begun."""

    async def look(since: float | None) -> None:
        async with Sending(10.0) as sending:
            sending.since = None if since is None else sending.now() - since
            sending._look()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    await look(None)
    await look(9.0)
    with pytest.raises(SendTimeoutError):
        await look(10.0)


def test_a_job_cancelled_by_somebody_else_is_a_conflict(place: Site) -> None:
    """The client of a whole answer is told, and told not to try again."""
    place.relay.play(*TALKING, CANCELLED)
    reply = place.http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "job_cancelled")
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-job-id"] == place.relay.answers[0].job


def test_a_job_that_fails_is_a_status(place: Site) -> None:
    """A whole answer has sent nothing yet, so its failure is a proper one, with the job's id."""
    place.relay.play(*TALKING, Failed(FailureCode.CONTEXT_TOO_LONG, "3000 tokens do not fit into 2048.", "messages"))
    reply = place.http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert reply.json()["error"]["param"] == "messages"
    assert reply.headers["x-job-id"] == place.relay.answers[0].job


def test_what_is_sent_is_not_logged_at_any_level(place: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The streaming library would log each chunk at level debug."""
    caplog.set_level(logging.DEBUG)
    place.relay.play(TextDelta("a-secret-answer"), END)
    assert any("a-secret-answer" in line for line in stream(place))
    assert not any("a-secret-answer" in record.getMessage() for record in caplog.records)
