"""How the server stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from typing import Any

import httpx
import pytest

from api import server
from api.answer import Stopped
from api.drain import Drain
from tasks.events import Queued, Started, TextDelta
from tests.api.scripted import FirstHolds, Hold, ScriptedAnswer, StartHolds, Step
from tests.api.site import Site, site
from tests.fakes.notified import Notified
from tests.stack import LIMIT, eventually

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
TALKING: list[Step] = [Queued(), Started("w", "b"), TextDelta("Hel")]


def in_background(place: Site, body: dict[str, Any]) -> tuple[threading.Thread, list[httpx.Response]]:
    """A request that is answered in another thread."""
    replies: list[httpx.Response] = []
    client = httpx.Client(base_url=place.url, timeout=LIMIT)
    thread = threading.Thread(target=lambda: replies.append(client.post("/v1/chat/completions", json=body)))
    thread.start()
    return thread, replies


def test_an_open_stream_is_ended_with_a_word() -> None:
    """What is still open after the grace is told that the server stops, and its job is ended."""
    with site(drain=0.2) as place:
        place.relay.play(*TALKING, Hold())
        thread, replies = in_background(place, CHAT)
        answer = place.relay.answer()
        assert answer.reached.wait(LIMIT)
        place.server.should_exit = True
        thread.join(LIMIT)
    assert answer.closed.is_set()
    last = replies[0].text.strip().split("\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"


def test_a_stream_whose_client_does_not_read_is_cut(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be told anything; the server does not wait for that until its own patience is over."""
    monkeypatch.setattr(server, "FAREWELL", 0.1)
    with site(drain=0, stalled_client=600) as place:
        place.relay.play(*TALKING, *[TextDelta("x" * 60_000)] * 400, Hold())
        with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
            data = json.dumps(CHAT).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            sock.sendall(head + b"content-length: %d\r\n\r\n" % len(data) + data)
            answer = place.relay.answer()
            assert sock.recv(1)
            place.server.should_exit = True
            assert answer.closed.wait(LIMIT)
    assert not any("graceful" in record.getMessage() for record in caplog.records)


def test_a_whole_answer_is_refused_with_a_time() -> None:
    """Nothing has been sent to its client yet, who gets a 503 and when to come again."""
    with site(drain=0.2) as place:
        place.relay.play(*TALKING, Hold())
        thread, replies = in_background(place, CHAT | {"stream": False})
        assert place.relay.answer().reached.wait(LIMIT)
        place.server.should_exit = True
        thread.join(LIMIT)
    assert (replies[0].status_code, replies[0].headers["retry-after"]) == (503, "5")


def test_a_stream_of_which_nothing_was_sent_is_refused() -> None:
    """Its client gets a status as well, and its job does not run on."""
    with site(drain=0.2) as place:
        place.relay.play(FirstHolds())
        thread, replies = in_background(place, CHAT | {"stream": True})
        answer = place.relay.answer()
        assert answer.reached.wait(LIMIT)
        place.server.should_exit = True
        thread.join(LIMIT)
    assert (replies[0].status_code, replies[0].json()["error"]["code"]) == (503, "server_stopping")
    assert answer.closed.is_set()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_that_is_still_to_begin_is_refused(stream: bool) -> None:
    """A client whose model is being loaded when the server stops hears so as well, and its job does not run on."""
    with site(drain=0.2) as place:
        place.relay.play(StartHolds())
        thread, replies = in_background(place, CHAT | {"stream": stream})
        assert place.relay.holding.wait(LIMIT)
        place.server.should_exit = True
        thread.join(LIMIT)
    assert (replies[0].status_code, replies[0].json()["error"]["code"]) == (503, "server_stopping")
    assert place.relay.start_cancelled.is_set()


def test_systemd_hears_of_it_while_the_loop_turns(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it answers, that it lives, that it stops; nothing while something keeps the loop."""
    loops: list[asyncio.AbstractEventLoop] = []
    stuck, free = threading.Event(), threading.Event()
    real = server.Server.on_tick

    async def on_tick(self: server.Server, counter: int) -> bool:
        loops.append(asyncio.get_running_loop())
        return await real(self, counter)

    def stand_still() -> None:
        stuck.set()
        free.wait(LIMIT)

    monkeypatch.setattr(server.Server, "on_tick", on_tick)
    monkeypatch.setattr(server, "LOOK", 0.01)
    with Notified(str(tmp_path / "systemd")) as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
        monkeypatch.setenv("WATCHDOG_USEC", "60000")
        with site() as place:
            systemd.until("READY=1")
            assert place.http.get("/healthz").status_code == 200
            systemd.until("WATCHDOG=1")
            loops[0].call_soon_threadsafe(stand_still)
            assert stuck.wait(LIMIT)
            systemd.forget()
            assert systemd.hears_nothing(0.2)
            free.set()
            systemd.until("WATCHDOG=1")
        systemd.until("STOPPING=1")


@pytest.mark.anyio
async def test_an_answer_that_begins_when_all_others_are_being_ended_is_ended_too() -> None:
    """It was accepted a moment before, and came into hand a moment after."""
    drain = Drain()
    drain.end()
    answer = ScriptedAnswer("tiny", [*TALKING, Hold()])
    async with asyncio.timeout(LIMIT):
        with drain.holding(answer), pytest.raises(Stopped):
            async for _ in answer:
                pass


PROGRAM = textwrap.dedent(
    """
    import sys
    from api.server import bind, serve
    from api.settings import ApiSettings
    from tests.api.scripted import hello
    from tests.api.site import World

    world = World()
    settings = ApiSettings(drain=300)
    sock = bind("127.0.0.1", 0)
    sock.listen(8)
    print(sock.getsockname()[1], flush=True)

    import asyncio
    from tasks.events import Numbered, TextDelta, number
    from tests.api import scripted

    async def steps(self):
        yield Numbered(1, TextDelta("begun"))
        # The rest comes only after the signal: the file says when.
        while not __import__("pathlib").Path(sys.argv[1]).exists():
            await asyncio.sleep(0.01)
        for item in number(7, tuple(hello())):
            yield item
    scripted.ScriptedAnswer.__aiter__ = steps
    serve(settings, [sock], world.app(settings))
    print("stopped in order", flush=True)
    """
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_open_streams_finish(number: signal.Signals, tmp_path: Any) -> None:
    """After the signal no connection is taken, the open answer comes whole, and the process ends by itself."""
    go = tmp_path / "go"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(go)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with httpx.Client(timeout=LIMIT) as client, client.stream("POST", url, json=CHAT) as reply:
            parts = reply.iter_text()
            text = next(parts)
            process.send_signal(number)
            refused(port)
            go.touch()
            text += "".join(parts)
        assert text.endswith("data: [DONE]\n\n")
        assert process.stdout.read() == "stopped in order\n"
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def refused(port: int) -> None:
    """Wait until the server takes no more connections."""

    def is_refused() -> bool:
        # In the moment it closes, a connection that waits to be taken is reset.
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=LIMIT).close()
            except ConnectionRefusedError:
                return True
        return False

    eventually(is_refused, what="the server to take no more connections")
