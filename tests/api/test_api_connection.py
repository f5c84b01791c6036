"""Connections: what comes in too slowly, never ends, or comes from too many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from api import connection
from api.body import read_bytes
from api.errors import HttpProblem
from api.settings import ApiSettings
from tasks.events import ChoiceEnded, FinishReason, Queued, Started, TextDelta
from tests.api.scripted import END, Hold
from tests.api.site import Site, site
from tests.stack import LIMIT, eventually

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 45\r\n\r\n"
    b'{"messages":[{"role":"user","content":"Hi"}]}'
)
PROBE = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Site]:
    """A server that waits a fifth of a second for anything."""
    with site(head_timeout=0.2, body_timeout=0.2, drain=0) as place:
        yield place


@contextlib.contextmanager
def dial(place: Site) -> Iterator[socket.socket]:
    """A connection to it."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        yield sock


def rest(sock: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            received += part
    return received


def reply(place: Site, sent: bytes) -> bytes:
    """What comes back for it, sent at once after a connection was made: again where this machine took too long for that."""

    def ask() -> bytes:
        with dial(place) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(sent)
            return rest(sock)
        return b""

    return eventually(ask, what="an answer")


@contextlib.contextmanager
def patience(place: Site) -> Iterator[None]:
    """Meanwhile the server waits longer for heads, so that one that is sent at once is in time on any machine."""
    settings = vars(place.server.config.http.keywords["settings"])  # type: ignore[union-attr]
    before, settings["head_timeout"] = settings["head_timeout"], LIMIT
    try:
        yield
    finally:
        settings["head_timeout"] = before


def refusal(received: bytes) -> tuple[int, dict[str, bytes], dict[str, Any]]:
    """Status, headers and error of one whole answer."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    return int(first.split()[1]), {name.decode(): value for name, value in headers.items()}, json.loads(body)["error"]


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (HEAD, "headers did not arrive within 0.2 s"),
        (PROBE[:9], "headers did not arrive within 0.2 s"),
        (HEAD + b"\r\n", "after 0 bytes nothing came for 0.2 s"),
        (HEAD + b'\r\n{"pro', "after 5 bytes nothing came for 0.2 s"),
    ],
    ids=["half a head", "half a line", "no body", "half a body"],
)
def test_a_half_sent_request_is_answered_and_closed(hasty: Site, sent: bytes, says: str) -> None:
    """408, as an error object with the headers that every error has."""
    status, headers, error = refusal(reply(hasty, sent))
    assert (status, headers["connection"]) == (408, b"close")
    assert (error["code"], error["type"], error["param"]) == ("request_timeout", "invalid_request_error", None)
    assert says in error["message"]
    assert headers["x-request-id"].startswith(b"req_")
    assert headers["openai-version"] == b"2020-10-01"
    assert headers["content-type"] == b"application/json"


@pytest.mark.parametrize("probes", [0, 1], ids=["new", "kept alive"])
@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "empty lines"])
def test_a_connection_without_a_request_is_closed(
    hasty: Site, probes: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that sends the empty lines which a parser skips."""
    monkeypatch.setattr(hasty.server.config, "timeout_keep_alive", 0.2)
    with contextlib.ExitStack() as opened:
        with patience(hasty) if probes else contextlib.nullcontext():
            sock = opened.enter_context(dial(hasty))
            for _ in range(probes):
                sock.sendall(PROBE)
                assert b" 200 " in sock.recv(65536)
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
        assert b" 200 " not in rest(sock)


def test_half_a_request_behind_another_does_not_cut_its_answer(hasty: Site) -> None:
    """The answer on the line goes on, however late the half request is."""
    hasty.relay.play(Hold())
    with contextlib.ExitStack() as opened:
        body = b'{"prompt": "x", "stream": true}'
        with patience(hasty):
            sock = opened.enter_context(dial(hasty))
            sock.sendall(HEAD.replace(b"100", b"%d" % len(body)) + b"\r\n" + body)
            answer = hasty.relay.answer()
            assert answer.reached.wait(LIMIT)
        sock.sendall(HEAD)
        for _ in range(2):  # the time of these is up after that of the half request
            assert refusal(reply(hasty, HEAD))[0] == 408
        assert not answer.closed.is_set()


def test_what_is_no_http_behind_a_request_is_not_answered_in_its_place(place: Site) -> None:
    """Nor if another waits in between: the connection ends, and with it the job."""
    place.relay.play(Hold())
    with dial(place) as sock:
        sock.sendall(CHAT)
        answer = place.relay.answer()
        sock.sendall(HEAD + b"\r\n" + b"x" * 100 + b"no HTTP\r\n\r\n")
        assert rest(sock) == b""
        assert answer.closed.wait(LIMIT)


def test_what_comes_behind_a_request_has_an_end(place: Site) -> None:
    """It waits in memory. Past the bound the answer before it says that it is the last one here, and is."""
    place.relay.play(Hold())
    before = set(place.server.server_state.connections)
    with dial(place) as sock:
        sock.sendall(CHAT)
        answer = place.relay.answer()
        assert answer.reached.wait(LIMIT)
        (line,) = set(place.server.server_state.connections) - before
        assert isinstance(line, connection.BoundedHttp)
        sock.sendall(PROBE)
        eventually(lambda: line.pipeline, what="a request that waits")
        sock.sendall((PROBE * connection.MAX_BEHIND)[: connection.MAX_BEHIND + 1])
        eventually(lambda: not line.pipeline, what="an end of the waiting")
        line.loop.call_soon_threadsafe(answer.stop)
        received = rest(sock)
    assert received.count(b"HTTP/1.1 ") == 1 and b"connection: close\r\n" in received
    assert b"server_stopping" in received


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(hasty: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was answered before the body had come, and goes on sending it drop by drop, is cut off."""
    monkeypatch.setattr(connection, "LINGER", 0.5)
    with patience(hasty), dial(hasty) as sock:
        sock.sendall(HEAD.replace(b"completions", b"nothing").replace(b"100", b"10000") + b"\r\n{")
        received = b""
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            while True:
                sock.sendall(b" ")
                sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not (part := sock.recv(65536)):
                        break
                    received += part
    assert received.startswith(b"HTTP/1.1 404 ")


def test_what_stands_around_a_body_has_an_end(place: Site) -> None:
    """Headers may follow a body in chunks; gathered without end they would fill the memory."""
    with dial(place) as sock:
        sock.sendall(HEAD.replace(b"content-length: 100", b"transfer-encoding: chunked") + b"\r\n0\r\n")
        received = b""
        with contextlib.suppress(ConnectionError):
            for number in range(200):
                sock.sendall(b"x-%d: " % number + b"a" * 4096 + b"\r\n")
            received = rest(sock)
    assert received == b"" or refusal(received)[0] == 400
    assert place.http.get("/healthz").status_code == 200


def test_a_large_body_is_no_large_head() -> None:
    """It comes in many parts; only what stands around the chunks of one is bounded as headers are."""
    with site(drain=0) as place:
        prompt = "x" * (16 * connection.MAX_HEAD)
        assert place.http.post("/v1/completions", json={"model": "tiny", "prompt": prompt}).status_code == 200


def test_a_refused_request_has_one_answer(place: Site) -> None:
    """Also where its route answers at once, without the body that was none, and the client has yet to read an earlier answer."""
    place.relay.play(Queued(), Started("w", "b"), TextDelta("x" * 300_000), ChoiceEnded(0, FinishReason.STOP), END)
    before = set(place.server.server_state.connections)
    body = b'{"prompt": "x"}'
    chunked = HEAD.replace(b"completions", b"nothing").replace(b"content-length: 100", b"transfer-encoding: chunked")
    with dial(place) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        (line,) = eventually(lambda: set(place.server.server_state.connections) - before, what="the connection")
        assert isinstance(line, connection.BoundedHttp)
        line.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        line.transport.set_write_buffer_limits(high=10_000_000)
        sock.sendall(HEAD.replace(b"100", b"%d" % len(body)) + b"\r\n" + body)
        eventually(lambda: line.cycle is not None and line.cycle.response_complete, what="an answer")
        assert line.transport.get_write_buffer_size() > 0
        sock.sendall(chunked + b"\r\nno length\r\n")
        eventually(line.transport.is_closing, what="the refusal")
        _, first, *others = rest(sock).split(b"HTTP/1.1 ")
    assert first.startswith(b"200 ") and len(others) == 1
    assert refusal(b"HTTP/1.1 " + others[0])[0] == 400


def test_what_is_no_http_is_refused_in_words(place: Site) -> None:
    """Such as a TLS greeting, from a client that was given https:// by mistake."""
    with dial(place) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        status, headers, error = refusal(rest(sock))
    assert (status, error["code"]) == (400, "invalid_http")
    assert "https://" in error["message"]
    assert headers["x-request-id"]


def test_too_many_connections_are_told_so() -> None:
    """503 for the next one while probes pass, and room again when one has left."""
    with site(max_connections=2, drain=0) as place, dial(place) as first, dial(place) as second:
        for sock in (first, second):
            sock.sendall(PROBE)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        models = PROBE.replace(b"/healthz", b"/v1/models")
        with dial(place) as third:
            third.sendall(PROBE + models)
            passed, _, refused = rest(third).partition(b'{"status":"ok"}')
        assert passed.startswith(b"HTTP/1.1 200 ")
        status, headers, error = refusal(refused)
        assert (status, error["code"], headers["retry-after"]) == (503, "too_many_connections", b"5")
        assert "ROCKCHIPLLAMA_MAX_CONNECTIONS" in error["message"]
        assert headers["x-request-id"].startswith(b"req_")
        first.close()

        def taken() -> bool:
            with dial(place) as sock:
                sock.sendall(models)
                return sock.recv(65536).startswith(b"HTTP/1.1 200 ")

        eventually(taken, what="room for a connection")


def test_many_more_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a file, so the telling has a bound, too."""
    monkeypatch.setattr(connection, "CROWD", 0)
    with site(max_connections=1, drain=0) as place, dial(place) as first:
        first.sendall(PROBE)
        assert first.recv(65536).startswith(b"HTTP/1.1 200 ")
        with dial(place) as second, contextlib.suppress(ConnectionError):
            second.sendall(PROBE)
            assert second.recv(65536) == b""


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def upload(parts: int, seconds: float) -> bytes:
    """Read a body of so many parts of ten bytes, each of which takes so many seconds."""
    loop = Clock()
    left = parts

    async def receive() -> Message:
        nonlocal left
        loop.ahead += seconds
        for _ in range(3):
            await asyncio.sleep(0)  # whatever is due now happens now
        left -= 1
        return {"type": "http.request", "body": b"0123456789", "more_body": left > 0}

    http = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with contextlib.closing(loop):
        return loop.run_until_complete(read_bytes(http, ApiSettings()))


def test_a_slow_upload_passes_while_it_makes_progress() -> None:
    """From a telephone in a tunnel: each part within the limit for silence, all of them within that for the whole."""
    assert len(upload(parts=20, seconds=29)) == 200


@pytest.mark.parametrize(
    ("seconds", "says"), [(31.0, "after 0 bytes nothing came for 30 s"), (29.0, "was not whole after 600 s")]
)
def test_an_upload_that_stops_or_never_ends_is_refused(seconds: float, says: str) -> None:
    """408, with what was too slow about it."""
    with pytest.raises(HttpProblem, match=says) as refused:
        upload(parts=1000, seconds=seconds)
    assert (refused.value.problem.status, refused.value.problem.close) == (408, True)


OPEN_FILES = textwrap.dedent(
    """
    import resource
    from api.app import create_app
    from api.server import server
    from api.settings import ApiSettings

    settings = ApiSettings(max_connections=1000)
    app = create_app(settings)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 2048))
    first = server(settings, app).config.http.keywords["settings"].max_connections
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
    second = server(settings, app).config.http.keywords["settings"].max_connections
    print(first, allowed, second)
    """
)


def test_connections_and_open_files_agree() -> None:
    """Most systems begin with 1,024 files: more are asked for, and where there are no more, fewer connections are taken."""
    done = subprocess.run([sys.executable, "-c", OPEN_FILES], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1000 1256 256\n"
    assert "at most 256 connections" in done.stderr
