"""`up` with real processes, real signals and a real Valkey; only API and board are stubs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ops import environment
from ops.up.store import SOCKET_NAME, socket_dir
from tests.fakes.notified import Notified
from tests.stack import LIMIT, eventually

PARTS = Path(__file__).parent / "parts"


class Up:
    """One running `up`, what it says, and every process that belongs to it."""

    def __init__(self, folder: Path, *, api: str = "api", board: str = "board", port: int = 0) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.journal.touch()
        command = [sys.executable, str(PARTS / "run_up.py"), str(folder / "data"), str(port), str(self.journal)]
        self.process = subprocess.Popen(
            [*command, api, board],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment.for_child({}),
            start_new_session=True,
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.family: dict[int, psutil.Process] = {}

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def says(self, words: str) -> None:
        """Wait until it has said so."""

        def heard() -> bool:
            if words in self.said:
                return True
            if self.process.poll() is not None:
                self._reader.join(LIMIT)
                assert words in self.said, f"ended without saying {words!r}: {self.said}"
            return words in self.said

        eventually(heard, what=repr(words))

    def noted(self, words: str, times: int = 1) -> list[int]:
        """Wait until the journal has the words so many times; the pids that noted them."""
        pattern = re.compile(rf"^{re.escape(words)} (\d+)$", re.MULTILINE)
        eventually(lambda: len(pattern.findall(self.journal.read_text())) >= times, what=f"{words!r} in the journal")
        return [int(pid) for pid in pattern.findall(self.journal.read_text())]

    def is_up(self) -> None:
        """Wait until all of it runs, and remember its processes."""
        self.says("Ready after")
        self.noted("worker started")
        for process in psutil.Process(self.process.pid).children(recursive=True):
            self.family[process.pid] = process
        assert self.server().pid in self.family

    def server(self) -> psutil.Process:
        """The Valkey that runs now."""
        guards = [p for p in psutil.Process(self.process.pid).children() if "valkey-guard" in p.cmdline()]
        [server] = [p for guard in guards for p in guard.children() if p.name() == "valkey-server"]
        return server

    def ended(self) -> int:
        """Its exit code."""
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return code

    def nothing_is_left(self) -> None:
        """Wait until none of its processes lives."""
        for process in self.family.values():
            eventually(lambda process=process: _gone(process), what=f"the end of {process}")


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(**options: object) -> Up:
        started.append(Up(tmp_path, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.ended()
        one.nothing_is_left()


def test_ctrl_c_stops_everything_in_order(up: Callable[..., Up]) -> None:
    """API first, then the board, the store last; nothing is left and the exit code is 0."""
    one = up()
    one.is_up()
    assert _redis(one, b"CONFIG GET hz\r\n").split() == [b"*2", b"$2", b"hz", b"$1", b"1"]  # it lets the board sleep
    assert (
        _redis(one, b"CONFIG GET maxmemory-policy\r\n").split()[-1] == b"volatile-ttl"
    )  # and keeps what has not ended
    _redis(one, b"SET rl:counts any PX 100000\r\n")
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 0
    files = list((one.folder / "data/valkey/appendonlydir").glob("*.incr.aof"))
    assert any(b"rl:carried:counts" in file.read_bytes() for file in files)  # what else is not in them
    words = [line.rsplit(" ", 1)[0] for line in one.journal.read_text().splitlines()]
    assert words.index("api stopped") < words.index("board stopped")
    assert "bye bye" in (one.folder / "data/logs/valkey.log").read_text()
    one.nothing_is_left()


def test_a_hard_kill_leaves_no_process_and_the_next_up_recovers(up: Callable[..., Up]) -> None:
    """Workers in sessions of their own and Valkey leave too, and what it stored is there again."""
    one = up()
    one.is_up()
    _redis(one, b"SET kept 1\r\n")
    _redis(one, b"SET rl:counts any\r\n")
    one.process.kill()
    two = up()
    two.is_up()
    one.ended()
    one.nothing_is_left()
    assert _redis(two, b"GET kept\r\n") == b"$1\r\n1\r\n"
    assert _redis(two, b"EXISTS rl:counts\r\n") == b":0\r\n"  # older than what watchers have seen


def test_a_second_up_names_the_first(up: Callable[..., Up]) -> None:
    """The same data directory is one sentence with the URL of the one that runs."""
    one = up()
    one.is_up()
    url = re.search(r"http://127\.0\.0\.1:\d+", one.said)
    assert url is not None
    two = up()
    assert two.ended() == 1
    assert two.said.count("\n") == 1
    assert f"already runs from the data directory {one.folder / 'data'} at {url[0]}" in two.said


def test_a_taken_port_is_one_sentence(up: Callable[..., Up]) -> None:
    """It names the port and how to choose another, and nothing has been started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = up(port=port)
        assert one.ended() == 1
    assert one.said == (
        f"up: Port {port} on 127.0.0.1 is in use by another program; stop that one, "
        "or choose another with --port or ROCKCHIPLLAMA_PORT.\n"
    )
    assert not (one.folder / "data/logs").exists()


def test_a_part_that_dies_is_started_again(up: Callable[..., Up]) -> None:
    """API, store and guard each; it is said, and the address stays."""
    one = up()
    one.is_up()
    server = one.server()
    os.kill(one.noted("api started")[0], signal.SIGKILL)
    one.noted("api started", 2)
    one.says("api ended unexpectedly (killed by SIGKILL)")
    _redis(one, b"SET rl:counts any\r\n")
    server.kill()
    one.says("valkey ended unexpectedly")
    eventually(lambda: _answers(one), what="the store's return")
    eventually(lambda: _redis(one, b"EXISTS rl:counts\r\n") == b":0\r\n", what="counters that begin anew")
    server = one.server()
    guard = server.parent()
    assert guard is not None
    guard.kill()  # its server must not stay behind and hold the files
    eventually(lambda: _gone(server), what="the end of the unguarded server")
    eventually(lambda: _answers(one), what="the store's second return")


def test_a_part_that_keeps_dying_stops_everything(up: Callable[..., Up]) -> None:
    """With its last lines and where its log is."""
    one = up(board="dies_at_once")
    assert one.ended() == 1
    assert len(one.noted("dies_at_once started")) == 5
    assert "board keeps dying (exit code 3, 5 times in 60 s), so everything stops." in one.said
    assert str(one.folder / "data/logs/board.log") in one.said
    assert one.said.rstrip().endswith("out of luck")
    one.noted("api stopped")


def test_a_part_that_refuses_its_settings_is_not_tried_again(up: Callable[..., Up]) -> None:
    """Exit code 2 means that a setting is wrong; what the part said is on the terminal."""
    one = up(board="refuses")
    assert one.ended() == 2
    assert len(one.noted("refuses started")) == 1
    assert "rockchipllama: this cannot be." in one.said


def test_a_second_ctrl_c_does_not_wait(up: Callable[..., Up]) -> None:
    """A part that will not stop is killed at once, and the rest is stopped all the same."""
    one = up(api="ignores_sigterm")
    one.is_up()
    one.process.send_signal(signal.SIGINT)
    one.says("Stopping.")
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 0
    assert "did not stop within" not in one.said
    one.nothing_is_left()


def test_a_store_that_does_not_start_says_why(up: Callable[..., Up], tmp_path: Path) -> None:
    """Its own last lines, and what to do; the other parts are never started."""
    append_only = tmp_path / "data/valkey/appendonlydir"
    append_only.mkdir(parents=True)
    (append_only / "appendonly.aof.1.incr.aof").write_text("*1\r\n$7\r\nNOTHING\r\n")  # whole, and no command
    (append_only / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    one = up()
    assert one.ended() == 1
    assert "The embedded Valkey does not start. It said:" in one.said
    assert "unknown command 'NOTHING'" in one.said
    assert "move that folder away" in one.said
    assert one.journal.read_text() == ""


def test_a_damaged_store_is_mended(up: Callable[..., Up], tmp_path: Path) -> None:
    """At the start, as after a power cut that took the manifest too, and while it runs: what was cut off is said and kept, the
    rest is there."""
    append_only = tmp_path / "data/valkey/appendonlydir"
    append_only.mkdir(parents=True)
    file = append_only / "appendonly.aof.1.incr.aof"
    file.write_bytes(b"*3\r\n$3\r\nSET\r\n$4\r\nkept\r\n$1\r\n1\r\n" + bytes(100))
    one = up()
    one.is_up()
    one.says("The list of the queue's files was damaged")
    one.says("the last 100 of its 130 bytes could not be read")
    assert _redis(one, b"GET kept\r\n") == b"$1\r\n1\r\n"
    with file.open("ab") as damaged:
        damaged.write(b"*3\r\n$3\r\nSET\r\n$4")
    one.server().kill()
    one.says("the last 15 of its 45 bytes could not be read")
    eventually(lambda: _answers(one), what="the store's return")
    assert _redis(one, b"GET kept\r\n") == b"$1\r\n1\r\n"
    assert len(list(append_only.glob("*.aof.damaged-*"))) == 2
    assert _redis(one, b"SET kept 2\r\n") == b"+OK\r\n"
    assert "check-aof" not in one.said and "check-aof" in (one.folder / "data/logs/valkey.log").read_text()


def test_a_queue_in_memory_alone_writes_nothing(up: Callable[..., Up], monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is said what that means."""
    monkeypatch.setenv("ROCKCHIPLLAMA_DURABILITY", "ram")
    one = up()
    one.is_up()
    assert "in memory alone: jobs and API keys are forgotten when it stops" in one.said
    assert _redis(one, b"SET kept 1\r\n") == b"+OK\r\n"
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 0
    assert list((one.folder / "data/valkey").iterdir()) == []


def test_systemd_hears_that_it_answers_and_that_all_of_it_lives(
    up: Callable[..., Up], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing while a part stands still, though it has not ended."""
    with Notified(str(tmp_path / "systemd")) as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        one = up()
        systemd.until("READY=1")
        one.is_up()
        url = re.search(r"http://127\.0\.0\.1:\d+", one.said)
        assert url is not None
        systemd.until(f"STATUS=Listening at {url[0]}, with tiny on echo")
        systemd.until("WATCHDOG=1")
        [board] = one.noted("board started")
        os.kill(board, signal.SIGSTOP)
        eventually(lambda: systemd.hears_nothing(0.6), what="silence")
        one.says("board gives no sign of life")
        os.kill(board, signal.SIGCONT)
        systemd.until("WATCHDOG=1")
        one.process.send_signal(signal.SIGTERM)
        stopping = systemd.until("STOPPING=1")
        assert "EXTEND_TIMEOUT_USEC=67000000" in stopping  # twenty for each of three parts, and those that are orphans
        assert one.ended() == 0
    assert list((one.folder / "data/run").glob("*.notify")) == []


def _redis(one: Up, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(_socket(one)))
        client.sendall(command)
        return client.recv(100)


def _answers(one: Up) -> bool:
    try:
        return _redis(one, b"PING\r\n") == b"+PONG\r\n"
    except OSError:
        return False


def _socket(one: Up) -> Path:
    return socket_dir(one.folder / "data") / SOCKET_NAME
