"""The path of one request through the HTTP side, whatever its dialect."""

from __future__ import annotations

import contextlib
import logging
import socket

import httpx
import pytest

from api.answer import Waiting
from tasks.api_keys import Scope
from tasks.errors import LimitReached, QueueFull, QueueUnavailable
from tasks.events import TextDelta
from tasks.limits import Allowance, Bucket, Limits
from tasks.logs import TextLines
from tests.api.scripted import END
from tests.api.site import RequestLines, Site, site
from tests.stack import LIMIT

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def test_a_post_without_a_content_type_is_read(place: Site) -> None:
    """What `curl -d` sends is JSON whatever its header says."""
    reply = place.http.post(
        "/v1/chat/completions",
        content=b'{"messages":[{"role":"user","content":"Hi"}]}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions", "/v1/chat/completions/", "/chat/completions", "/chat/completions/"),
        *("/v1//chat/completions", "//v1/chat//completions//"),
    ],
)
def test_a_path_without_version_or_with_a_slash_is_the_same_path(place: Site, path: str) -> None:
    """People forget /v1, and put together addresses with slashes at both ends; a redirect would lose their body."""
    assert place.http.post(place.url + path, json=CHAT).status_code == 200


def test_an_answer_carries_the_headers_clients_read(place: Site) -> None:
    """Request id, job id, place in the queue, the room in it and times are on a good answer, streamed or whole."""
    place.relay.waiting = Waiting(4, 12.3)
    streamed = place.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    reply = place.http.post("/v1/chat/completions", json=CHAT)
    for each in (streamed, reply):
        assert each.headers["x-ratelimit-limit-requests"] == "64"
        assert each.headers["x-ratelimit-remaining-requests"] == "61"
        assert each.headers["x-ratelimit-reset-requests"] == "6.25s"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["openai-version"] == "2020-10-01"
    assert int(reply.headers["openai-processing-ms"]) >= 0
    assert reply.headers["x-job-id"] == reply.json()["id"].removeprefix("chatcmpl-")
    assert (reply.headers["x-queue-position"], reply.headers["x-queue-wait"]) == ("4", "13")
    place.relay.waiting = Waiting(4)  # paused: nobody can tell how long that will be
    assert "x-queue-wait" not in place.http.post("/v1/chat/completions", json=CHAT).headers


def test_an_error_carries_the_headers_clients_read(place: Site) -> None:
    """They are on errors as well."""
    reply = place.http.get("/v1/nothing", headers={"x-request-id": "mine-1"})
    assert reply.status_code == 404
    assert reply.headers["x-request-id"] == "mine-1"
    assert reply.headers["openai-version"] == "2020-10-01"
    assert reply.json()["error"] == {
        "message": "There is nothing at GET /v1/nothing. GET /docs lists what there is.",
        "type": "invalid_request_error",
        "param": None,
        "code": "unknown_url",
    }


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/chat/completions", "puts /v1/chat/completions behind its base URL itself: leave '/v1' out"),
        ("/v1/v1/messages", "puts /v1/messages behind its base URL itself: leave '/v1' out"),
        ("/v1/api/chat", "puts /api/chat behind its base URL itself: leave '/v1' out"),
        ("/api/v1/models", "puts /v1/models behind its base URL itself: leave '/api' out"),
        ("/v1/version/1", "GET /docs lists what there is."),
    ],
)
def test_a_base_url_with_a_part_too_many_is_told(place: Site, path: str, hint: str) -> None:
    """In every dialect, since it is the first mistake that people make."""
    reply = place.http.post(path, json={})
    assert (reply.status_code, hint in reply.text) == (404, True)


@pytest.mark.parametrize("sent", ["x" * 200, "a b", 'a"b', "ü"])
def test_an_insane_request_id_is_replaced(place: Site, sent: str) -> None:
    """What could break a header or a log line is not echoed."""
    reply = place.http.get("/v1/models", headers={"x-request-id": sent.encode()})
    assert reply.headers["x-request-id"].startswith("req_")


def test_a_wrong_method_names_the_right_ones(place: Site) -> None:
    """405 is an error object too, with the Allow header."""
    reply = place.http.delete("/v1/chat/completions")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"
    assert reply.json()["error"]["code"] == "method_not_allowed"
    assert place.http.delete("/v1/models").headers["allow"] == "GET, HEAD"
    assert place.http.put("/v1/files").headers["allow"] == "GET, HEAD, POST"  # of two routes


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/models/tiny", "/models", "/healthz", "/readyz", "/openapi.json"]
)
def test_head_answers_where_get_does(place: Site, path: str) -> None:
    """HEAD has the status and headers of GET, and no body."""
    head, get = place.http.head(path), place.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_a_full_queue_says_when_to_come_again(place: Site) -> None:
    """429 carries the time in seconds and in milliseconds, and what the queue is like."""
    place.relay.refuse(QueueFull("tiny", 64, 7.25))
    reply = place.http.post("/v1/chat/completions", json=CHAT)
    assert reply.status_code == 429
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("8", "7250")
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert reply.headers["x-ratelimit-reset-requests"] == "7m44s"  # until all 64 have had their turn


def test_a_limit_that_is_reached_says_which_and_when_to_come_again(place: Site) -> None:
    """And what is left of the others, on each front under its names."""
    allowance = Allowance(Bucket(3, 0, 58.5), Bucket(600, 120, 48.0))
    place.relay.refuse(LimitReached("requests", 3, 18.5, allowance))
    reply = place.http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert reply.json()["error"]["message"] == "Your API key may use 3 requests a minute, and has. Try again in 18 s."
    found = {name[12:]: value for name, value in reply.headers.items() if name.startswith("x-ratelimit-")}
    assert found == {
        "limit-requests": "3",
        "remaining-requests": "0",
        "reset-requests": "58.5s",
        "limit-tokens": "600",
        "remaining-tokens": "120",
        "reset-tokens": "48s",
    }
    assert reply.headers["retry-after-ms"] == "18500"
    reply = place.http.post("/v1/messages", json={"max_tokens": 5, **CHAT})
    assert reply.headers["anthropic-ratelimit-tokens-remaining"] == "120"


def test_the_limits_of_a_key_are_minded(place: Site) -> None:
    """They go along with each of its requests; what is left is told with the answer."""
    limits = Limits(requests=60, jobs=2)
    place.world.api_keys.make("limited", Scope.INFERENCE, limits=limits)
    place.world.api_keys.make("free", Scope.INFERENCE)
    for key, minded in (("limited", limits), ("free", None)):
        reply = place.http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"})
        assert reply.status_code == 200
        assert place.relay.calls[-1].limits == minded
        assert reply.headers["x-ratelimit-limit-requests"] == ("60" if minded else "64")


def test_redis_away_is_a_503_with_a_time(place: Site) -> None:
    """Nothing is a 500 because the queue cannot be reached."""
    place.relay.refuse(QueueUnavailable("connection refused"))
    reply = place.http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert reply.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("streamed", [False, True], ids=["refused", "in mid-stream"])
def test_where_redis_is_goes_into_the_log_only(place: Site, streamed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A client is told what it can do, not which paths and addresses there are."""
    error = QueueUnavailable("Error 111 connecting to /run/secret/valkey.sock:6379.")
    if streamed:
        place.relay.play(TextDelta("Hel"), error)
    else:
        place.relay.refuse(error)
    reply = place.http.post("/v1/chat/completions", json=CHAT | {"stream": streamed})
    assert "secret" not in reply.text and "6379" not in reply.text
    assert "The job queue cannot be reached." in reply.text
    assert "try again shortly" in reply.text
    assert "/run/secret/valkey.sock" in caplog.text


def test_an_unexpected_error_is_a_500_with_its_id(place: Site, lines: RequestLines) -> None:
    """The client gets an error object and the id under which the traceback was logged."""
    place.relay.refuse(ZeroDivisionError("secret"))
    reply = place.http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in reply.text
    assert lines.next(reply.headers["x-request-id"]).exc_info


def test_the_log_has_one_line_a_request_and_no_contents(
    place: Site, lines: RequestLines, caplog: pytest.LogCaptureFixture
) -> None:
    """Method, path, status, job and sizes are logged; what was said is not."""
    caplog.set_level(logging.DEBUG)
    body = {"messages": [{"role": "user", "content": "a-secret-question"}], "stream": True}
    place.relay.play(TextDelta("a-secret-answer"), END)
    reply = place.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "once"})
    line = lines.next("once")
    assert line.getMessage() == "POST /v1/chat/completions 200"
    facts = line.__dict__
    assert (facts["in"], facts["out"]) == (int(reply.request.headers["content-length"]), len(reply.content))
    assert facts["job"] == place.relay.answers[0].job
    assert 0 <= facts["first_ms"] <= facts["total_ms"]
    logged = [record for record in caplog.records if not record.name.startswith("http")]
    assert not any("a-secret" in record.getMessage() + repr(record.__dict__) for record in logged)


def test_a_path_cannot_forge_a_line(place: Site, lines: RequestLines) -> None:
    """What is not printable in a path is escaped where the line is written."""
    place.http.get("/v1/a%0Ab", headers={"x-request-id": "forged"})
    assert "\n" not in TextLines().format(lines.next("forged"))


def test_probes_are_not_logged_among_requests(place: Site, lines: RequestLines) -> None:
    """Asked every few seconds, they would bury everything else."""
    place.http.get("/healthz", headers={"x-request-id": "probe"})
    assert lines.next("probe").levelno == logging.DEBUG


def test_endless_headers_are_refused(place: Site) -> None:
    """A head without an end is answered with 400 instead of being gathered."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ")
        received = b""
        # The refusal may overtake what is still being sent, and then the connection is reset.
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                sock.sendall(b"a" * 4096)
            received = sock.recv(4096)
        assert received == b"" or b" 400 " in received.splitlines()[0]


def test_a_page_of_another_site_may_not_read(place: Site) -> None:
    """A browser lets pages of this machine call the API, and no others unless they are named."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    mine = place.http.options("/v1/chat/completions", headers={"origin": "http://localhost:3000", **asked})
    assert mine.status_code == 200
    assert mine.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "x-stainless-os" in mine.headers["access-control-allow-headers"]
    for origin in ("http://evil.example", "http://localhost.evil.example"):
        other = place.http.options("/v1/chat/completions", headers={"origin": origin, **asked})
        assert "access-control-allow-origin" not in other.headers
        assert (other.status_code, other.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "ROCKCHIPLLAMA_CORS_ORIGINS" in other.json()["error"]["message"]


def test_a_page_asks_before_it_does_what_nothing_here_takes(place: Site) -> None:
    """The answer says what is taken."""
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "PUT"}
    reply = place.http.options("/v1/models", headers=asked)
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD, POST, PATCH, DELETE")
    assert reply.json()["error"]["code"] == "method_not_allowed"


def test_a_page_reads_what_its_client_goes_by(place: Site) -> None:
    """Browsers hide every header that is not named, and by these official clients know whether and when to try again."""
    place.relay.refuse(QueueFull("tiny", 64, 7.25))
    origin = {"origin": "http://localhost:3000"}
    reply = place.http.post("/v1/chat/completions", json=CHAT, headers=origin)
    named = set(reply.headers["access-control-expose-headers"].split(", "))
    assert {name for name in reply.headers if name.startswith(("x-", "retry-", "openai-"))} <= named
    other = place.http.post("/v1/messages", json=CHAT | {"max_tokens": 5}, headers=origin)
    assert {name for name in other.headers if name.startswith(("x-", "retry-", "anthropic-", "request-"))} <= named
    assert {"x-should-retry", "x-job-id", "x-queue-position", "x-queue-wait", "x-stream-grace"} <= named


def test_a_page_of_the_internet_may_reach_into_this_network() -> None:
    """If it is named. The browser asks about that, too, and a refusal would undo the permission."""
    asked = {
        "origin": "https://ui.example.com",
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    with site(cors_origins=("https://ui.example.com",), drain=0) as place:
        reply = place.http.options("/v1/chat/completions", headers=asked)
        assert (reply.status_code, reply.headers["access-control-allow-private-network"]) == (200, "true")
        reply = place.http.options("/v1/chat/completions", headers=asked | {"origin": "https://evil.example.com"})
        assert reply.status_code == 403
        assert "access-control-allow-private-network" not in reply.headers


def test_many_clients_each_get_their_own(place: Site) -> None:
    """One connection's pipelined requests are answered in order."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(
            b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        received = b""
        while part := sock.recv(65536):
            received += part
    assert received.index(b'"status":"ok"') < received.index(b'"object":"list"')


def test_the_server_names_no_software(place: Site) -> None:
    """No header tells which server and version this is."""
    assert "server" not in httpx.get(place.url + "/healthz", timeout=LIMIT).headers
