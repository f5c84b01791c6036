"""The pieces of `up` by themselves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from npu.hardware import kernel
from ops.up import health, listen, lock, sharing, store
from ops.up import service as service_module
from ops.up.errors import AlreadyRunning, PartFailed, PortInUse, UpError
from ops.up.output import LogFile, Output
from ops.up.part import FIRST_PAUSE, TOO_OFTEN, WINDOW, Part, describe_end
from ops.up.ready import Readiness, _read, listens, place
from ops.up.saying import tell_how_to_join, trial
from ops.up.service import Plan, _Service, run
from ops.up.settings import UpSettings
from ops.up.supervisor import StopAsked, Supervisor
from tasks.settings import TaskSettings
from tests.stack import LIMIT


def test_one_up_per_data_dir(tmp_path: Path) -> None:
    """A second is told where the first serves; afterwards the directory is free again."""
    with lock.DataDirLock(tmp_path) as first:
        first.wait_for_parts(print, time.sleep)
        first.write("http://127.0.0.1:1234")
        with pytest.raises(AlreadyRunning, match=r"already runs .* at http://127.0.0.1:1234 \(process \d+\)"):
            lock.DataDirLock(tmp_path).__enter__()
    with lock.DataDirLock(tmp_path) as again:
        again.wait_for_parts(print, time.sleep)


def test_parts_of_an_earlier_run_are_waited_for(tmp_path: Path) -> None:
    """It is said once, and given up with what to do."""
    with lock.DataDirLock(tmp_path) as earlier:
        earlier.wait_for_parts(print, time.sleep)
        inherited = os.dup(earlier.parts)
    said: list[str] = []
    with lock.DataDirLock(tmp_path) as later, pytest.raises(PartFailed, match="End them and start again"):
        later.wait_for_parts(said.append, time.sleep, patience=0.2)
    assert len(said) == 1
    os.close(inherited)
    with lock.DataDirLock(tmp_path) as later:
        later.wait_for_parts(said.append, time.sleep)


def test_an_unusable_data_dir_is_a_sentence(tmp_path: Path) -> None:
    """Whatever the reason the system gives."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UpError, match="choose one that this user may write to with --data-dir"):
        lock.DataDirLock(tmp_path / "file").__enter__()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_the_url_reaches_the_socket(host: str) -> None:
    """Port 0 is any free one, and the URL is one a browser here can open."""
    with listen.listen(host, 0) as sock:
        port = sock.getsockname()[1]
        assert listen.url(sock).endswith(f":{port}")
        assert "0.0.0.0" not in listen.url(sock)
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_name_of_both_kinds_is_listened_on_where_all_clients_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever stands first in /etc/hosts."""
    found = socket.getaddrinfo
    newer = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **named: [newer, *found(*words, **named)])
    assert listen.resolve("127.0.0.1", 80) == (socket.AF_INET, ("127.0.0.1", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [newer])
    assert listen.resolve("::1", 80)[0] == socket.AF_INET6


def test_the_network_finds_it_too() -> None:
    """Listening everywhere, people are shown an address that another machine can use; listening on one, that one."""
    with listen.listen("0.0.0.0", 0) as sock:
        port = sock.getsockname()[1]
        shown = urlsplit(listen.network_url(sock))
        assert shown.port == port
        own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
        assert shown.hostname in own and shown.hostname != "0.0.0.0"
        routes = Path("/proc/net/route").read_text().splitlines()[1:]
        if any(line.split()[1] == "00000000" for line in routes):  # this machine is in a network
            assert not str(shown.hostname).startswith("127.")
        socket.create_connection((str(shown.hostname), port)).close()
    with listen.listen("127.0.0.1", 0) as sock:
        assert listen.network_url(sock) == listen.url(sock)


def test_a_network_that_leads_nowhere_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a route to the rest of the world, others in it find this machine under its address there."""
    nowhere = {socket.AF_INET: "255.255.255.255", socket.AF_INET6: "ff02::1"}  # nor may a plain socket reach those
    monkeypatch.setattr(listen, "ANYWHERE", nowhere)
    up, down = SimpleNamespace(isup=True), SimpleNamespace(isup=False)
    of = {"lo": "127.0.0.1", "eth0": "10.9.0.1", "eth1": "10.9.1.1"}
    addresses = {name: [SimpleNamespace(family=socket.AF_INET, address=address)] for name, address in of.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"eth0": down, "eth1": up, "lo": up})
    assert listen.network_address("0.0.0.0") == "10.9.1.1"
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"lo": up})
    assert listen.network_address("0.0.0.0") == "0.0.0.0"
    sixth = [SimpleNamespace(family=socket.AF_INET6, address=each) for each in ("fe80::1%eth1", "::1", "fd00:9::1")]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth1": sixth})
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"eth1": up})
    assert (listen.network_address("0.0.0.0"), listen.network_address("::")) == ("0.0.0.0", "fd00:9::1")


def test_a_log_keeps_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """People see it in their terminal; systemd's journal, and what Docker keeps of a container, are read by others as well."""
    access = sharing.Access(tmp_path)
    access.prepare("sesame")
    token = access.shown()
    assert token is not None
    said = []
    for terminal, container, systemd in (
        (True, False, ""),
        (True, False, "/nowhere"),
        (True, True, ""),
        (False, False, ""),
    ):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(kernel, "in_container", lambda container=container: container)
        monkeypatch.setenv("NOTIFY_SOCKET", systemd)
        tell_how_to_join(access, "10.9.0.1", 6380)
        said.append(capsys.readouterr().out)
    assert token.url("10.9.0.1", 6380) in said[0]
    for kept in said[1:]:
        assert token.secret not in kept and "join at 10.9.0.1:6380; `" in kept and "boards invite NAME" in kept


def test_whether_a_service_answers_is_asked_where_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever data directory and port it was given; and of one that is gone, or never was, nothing good is said."""
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(503 if len(asked) > 1 else 200)
            self.end_headers()

    processes = tmp_path / "proc"
    (processes / "1").mkdir(parents=True)  # of another user
    (processes / "2").symlink_to("/proc/self")
    assert health.main(processes) == 1 and "No service" in capsys.readouterr().err
    with lock.DataDirLock(tmp_path / "anywhere") as held:
        assert health.main(processes) == 1, "it does not listen yet"
        with HTTPServer(("127.0.0.1", 0), Answer) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            held.write(f"http://127.0.0.1:{server.server_port}")
            assert [health.main(processes) for _ in range(2)] == [0, 1]
            server.shutdown()
        assert health.main(processes) == 1 and asked == ["/healthz", "/healthz"]
        assert f"No service of {tmp_path / 'anywhere'} answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:sesame@example.net:1/0", "example.net:1"),
        ("rediss://example.net", "example.net:6379"),
        ("redis://:sesame@[::1]/3", "[::1]:6379"),
        ("unix://me:sesame@/run/redis.sock?db=1", "/run/redis.sock"),
    ],
)
def test_where_redis_should_be(url: str, shown: str) -> None:
    """Without what nobody should read over a shoulder."""
    assert place(url) == shown


def test_whether_anybody_listens(tmp_path: Path) -> None:
    """On a port or a socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://:sesame@127.0.0.1:{server.getsockname()[1]}/0"
        assert listens(url)
    assert not listens(url)
    path = tmp_path / "redis.sock"
    assert not listens(f"unix://{path}?db=0")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert listens(f"unix://{path}?db=0")


def test_what_a_killed_server_leaves_is_cleaned_up(tmp_path: Path) -> None:
    """The socket; its folder too where it is not the data directory's. What else lies there stays."""
    short, long = tmp_path / "d", tmp_path / ("x" * 100)
    for data_dir in (short, long):
        data_dir.mkdir()
        sock = store.socket_dir(data_dir) / store.SOCKET_NAME
        for _ in range(2):  # twice is safe
            sock.touch()
            store.clean_up(sock, data_dir)
            store.clean_up(sock, data_dir)
            assert not sock.exists()
            assert sock.parent.exists() is (sock.parent == data_dir.resolve() / "run")
            sock.parent.mkdir(exist_ok=True)
        (sock.parent / "other").touch()
        store.clean_up(sock, data_dir)
        assert (sock.parent / "other").exists()
        shutil.rmtree(sock.parent)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "a" * 300])
def test_a_foreign_address_is_a_sentence(host: str) -> None:
    """It names the setting to change."""
    with pytest.raises(PortInUse, match="ROCKCHIPLLAMA_HOST"):
        listen.listen(host, 0)


def test_the_socket_moves_out_of_a_long_or_odd_path(tmp_path: Path) -> None:
    """Unix sockets take 107 bytes; the same data directory always finds the same folder."""
    plain = store.socket_dir(tmp_path)
    assert plain == tmp_path.resolve() / "run" or not store._fits(tmp_path.resolve() / "run")
    long = tmp_path / ("x" * 100)
    odd = tmp_path / "a b%20c"
    for data_dir in (long, odd):
        data_dir.mkdir()
        found = store.socket_dir(data_dir)
        assert found == store.socket_dir(data_dir)
        assert len(os.fsencode(found / store.SOCKET_NAME)) <= store.LONGEST_SOCKET_PATH
        assert found.stat().st_mode & 0o777 == 0o700
        found.rmdir()


def test_somebody_elses_link_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp, anybody may make a link of the name we want."""
    data_dir = tmp_path / ("x" * 100)
    data_dir.mkdir()
    runtime, elsewhere = tmp_path / "r", tmp_path / "elsewhere"
    runtime.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(store.environment, "runtime_dir", lambda: runtime)
    wanted = store.socket_dir(data_dir)
    wanted.rmdir()
    if wanted.parent == runtime:
        wanted.symlink_to(elsewhere)
        found = store.socket_dir(data_dir)
        assert found.parent != runtime
        found.rmdir()


@pytest.mark.parametrize(
    ("total", "asked", "expected"),
    [
        (4 * 2**30, None, 256 * 2**20),
        (2**29, None, 64 * 2**20),
        (64 * 2**30, None, 2**30),
        (4 * 2**30, 100, 100 * 2**20),
    ],
)
def test_memory_of_the_store(total: int, asked: int | None, expected: int) -> None:
    """A sixteenth of the machine between 64 MB and 1 GB, or what was asked for."""
    assert store.memory_limit(total, asked) == expected


def test_a_log_never_outgrows_its_limit(tmp_path: Path) -> None:
    """It and one predecessor are kept."""
    log = LogFile(tmp_path / "logs/x.log", limit=100)
    for number in range(40):
        log.write(f"line {number:03}\n".encode())
    log.close()
    assert {path.name for path in log.path.parent.iterdir()} == {"x.log", "x.log.1"}
    assert all(path.stat().st_size <= 100 for path in log.path.parent.iterdir())
    assert "line 039" in log.path.read_text()


def test_output_is_taken_apart_into_lines(tmp_path: Path) -> None:
    """Also when a line comes in pieces, never ends, or is no text."""
    reader, writer = os.pipe()
    tail: deque[str] = deque(maxlen=3)
    shown: list[bytes] = []
    output = Output(reader, LogFile(tmp_path / "x.log"), tail, shown.append)
    for data in (b"one\ntw", b"o\n", b"\xff\n"):
        os.write(writer, data)
        assert output.read()
    os.write(writer, b"unended")
    os.close(writer)
    assert output.read()
    assert not output.read()
    output.close()
    output.close()
    assert shown == [b"one\n", b"two\n", b"\xff\n", b"unended\n"]
    assert list(tail) == ["two", "�", "unended"]


def test_a_line_that_would_be_refused_here_says_what_it_needs() -> None:
    """This machine may be in none of the trusted networks; with a key it does not matter, and the line has a place for it."""
    networks = ("10.0.0.0/8", "fd00::/8")
    for url in ("http://127.0.0.1:8080", "http://[::1]:8080"):
        assert "none of the trusted networks (10.0.0.0/8, fd00::/8)" in trial(url, networks, needs_key=False)
        assert "keys create NAME" in trial(url, networks, needs_key=False)
        assert trial(url, networks, needs_key=True) == trial(url, (), needs_key=False) == "Try it:"
    assert trial("http://10.1.2.3:8080", networks, needs_key=False) == "Try it:"


def test_two_ctrl_c_at_once_hurry_as_well(tmp_path: Path) -> None:
    """The second may come before anything began to stop; a part that will not is killed then, long before its time."""
    part = Part("p", ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], log=tmp_path / "p.log")
    with Supervisor() as supervisor:
        supervisor.start(part)
        assert supervisor.until(lambda: "ready" in part.tail, LIMIT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopAsked):
            supervisor.turn(LIMIT)
        begun = time.monotonic()
        supervisor.stop([(part, 2 * LIMIT)])
    assert time.monotonic() - begun < LIMIT


def test_restarts_pause_longer_and_longer_and_end(tmp_path: Path) -> None:
    """Too many deaths in one window are the end; old ones are forgotten."""
    part = Part("x", ["true"], log=tmp_path / "x.log")
    pauses = [part.plan_restart(100.0 + number) for number in range(TOO_OFTEN)]
    assert pauses == [*(FIRST_PAUSE * 2**number for number in range(TOO_OFTEN - 1)), None]
    assert part.plan_restart(200.0 + WINDOW) == FIRST_PAUSE


@pytest.mark.parametrize(
    ("status", "words"), [(3, "exit code 3"), (-9, "killed by SIGKILL"), (-62, "killed by signal 62")]
)
def test_an_end_in_words(status: int, words: str) -> None:
    """Signals by name where they have one."""
    assert describe_end(status) == words


@pytest.mark.parametrize(
    ("status", "body", "preload", "ready"),
    [
        (200, b'{"models": [{"id": "a", "loaded": true}]}', True, True),
        (200, b'{"models": [{"id": "a", "loading": true}]}', True, False),
        (200, b'{"models": [{"id": "a"}]}', False, True),
        (503, b'{"models": [], "reasons": ["none"]}', False, False),
        (500, b"<html>", True, False),
        (200, b'{"models": null}', False, False),
    ],
)
def test_when_a_service_counts_as_ready(status: int, body: bytes, preload: bool, ready: bool) -> None:
    """Loaded, or served at all where nothing is to be preloaded."""
    state = _read(status, body)
    assert isinstance(state, Readiness)
    assert state.ready(preload) is ready


def test_a_model_that_is_ready_while_advice_is_waited_for_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody asks for it any more then, so nothing would wake who waits for that."""
    monkeypatch.setattr(service_module, "PATIENCE", 0.0)
    plan = Plan(tasks=TaskSettings(data_dir=tmp_path, models_dir=tmp_path), up=UpSettings(), host="127.0.0.1", port=0)

    def stop(limit: float | None) -> None:
        raise StopAsked

    parts: Any = SimpleNamespace(wake=None, until=None, turn=stop)
    service = _Service(plan, parts, parts, parts, "http://127.0.0.1:1", "http://127.0.0.1:1")
    probe: Any = SimpleNamespace(state=Readiness(), absent=None, start=lambda: None)

    def becomes_ready(until: object) -> list[str]:
        probe.state = Readiness(served=True, models=[{"id": "tiny", "loaded": True}])
        return []

    advice: Any = SimpleNamespace(lines=becomes_ready)
    service._probe, service._advice = probe, advice
    with pytest.raises(StopAsked):
        service.serve()
    said = capsys.readouterr().out
    assert said.index("No model is ready") < said.index("Ready after")


@pytest.mark.parametrize(("name", "why"), [("missing", "is not there"), ("file", "is a file")])
def test_a_models_folder_that_is_none_is_a_sentence(tmp_path: Path, name: str, why: str) -> None:
    """A mistyped one would look like a service without models. Nothing has been started for it."""
    (tmp_path / "file").touch()
    plan = Plan(
        tasks=TaskSettings(data_dir=tmp_path / "data", models_dir=tmp_path / name),
        up=UpSettings(),
        host="127.0.0.1",
        port=0,
    )
    with pytest.raises(UpError, match=f"{name} {why}; name another with --models-dir"):
        run(plan)
    assert not (tmp_path / "data").exists()
