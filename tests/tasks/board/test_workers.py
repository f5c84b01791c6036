"""The worker processes of a board, played by small real processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from npu.errors import ModelRefused
from npu.model import Model
from tasks import worker_lock
from tasks.board import workers as module
from tasks.board.process import WorkerProcess
from tasks.board.workers import STEADY, WorkerChild, Workers
from tasks.settings import ROOT
from tests.fakes.clock import Clock
from tests.stack import LIMIT, eventually

LIVES = "echo $$ >> started; exec sleep 1000"
DIES = "echo $$ >> started; exit 3"
STUBBORN = "trap '' TERM; echo $$ >> started; while :; do sleep 0.05; done"


class Board:
    """The workers of one board, whose processes run a line of shell in a folder of their own."""

    def __init__(self, folder: Path, *, fds: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self.line = LIVES
        self.workers = Workers(self._command, folder, 60.0, fds)

    def _command(self, model: Model) -> list[str]:
        return ["/bin/sh", "-c", f"cd {self.folder}; {self.line}"]

    def model(self, name: str = "m") -> Model:
        return Model(id=name, engine="echo", folder=self.folder)

    def start(self, name: str = "m", memory: int = 0) -> None:
        self.workers.start(self.model(name), memory)

    def child(self, name: str = "m") -> WorkerChild:
        return self.workers._children[name]

    def pid(self, name: str = "m") -> int:
        process = self.child(name).process
        assert process is not None
        return process.pid

    def dead(self, name: str = "m") -> None:
        """Wait until its process has ended."""
        process = self.child(name).process
        assert process is not None
        eventually(lambda: process.poll() is not None, what="a death")

    def begun(self, times: int = 1) -> list[int]:
        """Wait until that many processes have begun to run; their numbers."""

        def look() -> list[int]:
            path = self.folder / "started"
            found = [int(word) for word in path.read_text().split()] if path.exists() else []
            return found if len(found) >= times else []

        return eventually(look, what="a start")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path)
    yield made
    made.workers.stop_all(0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def other_worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of `m` that an earlier agent left behind: it holds the lock."""
    code = (
        "import pathlib, sys, threading; from tasks import worker_lock; "
        "worker_lock.take(pathlib.Path(sys.argv[1]), 'm'); print('held', flush=True); threading.Event().wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_worker_is_started_once(board: Board) -> None:
    """However often it is asked for; another model gets its own."""
    for _ in range(3):
        board.start("m", 100)
        board.workers.tick()
    board.start("n", 50)
    assert sorted(board.begun(2)) == sorted([board.pid("m"), board.pid("n")])
    assert board.workers.reserved() == 150
    assert board.workers.has("m") and not board.workers.has("o")
    assert board.workers.note("m") is None and board.workers.note("o") is None


def test_it_leads_a_session_of_its_own(board: Board) -> None:
    """So Ctrl-C reaches the agent only, which stops its workers in order."""
    board.start()
    assert os.getsid(board.pid()) == board.pid() != os.getsid(0)


def test_it_goes_before_the_queue_when_memory_runs_out(board: Board) -> None:
    """The kernel ends the process with the highest number first; more than one's own needs no rights."""
    board.start()
    (pid,) = board.workers.living().values()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"


def test_it_inherits_what_it_must(tmp_path: Path) -> None:
    """The lifeline's descriptor, and no other."""
    reader, writer = os.pipe()
    made = Board(tmp_path, fds=(reader,))
    try:
        made.line = f"ls /proc/self/fd > fds; test -p /proc/self/fd/{reader} && echo yes > pipe; {LIVES}"
        made.start()
        made.begun()
        assert (tmp_path / "pipe").exists()
        assert str(writer) not in (tmp_path / "fds").read_text().split()
    finally:
        made.workers.stop_all(0.0)
        os.close(reader)
        os.close(writer)


def test_a_dead_worker_is_started_again_after_growing_pauses(board: Board, clock: Clock) -> None:
    """1, 2, 4 … seconds, at most the limit; and people are told how often and how it died."""
    board.line = DIES
    board.start("m", 100)
    pauses = []
    for death in range(1, 9):
        board.dead()
        board.workers.tick()
        assert board.child().process is None
        pauses.append(board.child().start_at - clock.now)
        assert board.workers.note("m") == f"its worker died {death} times in a row (last exit code 3)"
        assert board.workers.has("m") and board.workers.reserved() == 100
        clock.now = board.child().start_at - 0.001
        board.workers.tick()
        assert board.child().process is None
        clock.now += 0.001
        board.workers.tick()
        assert board.child().process is not None
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_worker_that_lived_long_dies_for_the_first_time(board: Board, clock: Clock) -> None:
    """One crash a day never adds up to a long pause."""
    board.line = DIES
    board.start()
    for _ in range(3):
        board.dead()
        board.workers.tick()
        clock.now = board.child().start_at
        board.workers.tick()
    assert board.child().deaths == 3
    clock.now += STEADY
    board.dead()
    board.workers.tick()
    assert (board.child().deaths, board.child().start_at - clock.now) == (1, 1)


def test_who_wants_it_now_need_not_wait_for_the_pause(board: Board, clock: Clock) -> None:
    """A request for its model ends the pause."""
    board.line = DIES
    board.start()
    for _ in range(4):
        board.dead()
        board.workers.tick()
        clock.now = board.child().start_at
        board.workers.tick()
    board.dead()
    board.workers.tick()
    assert board.child().start_at > clock.now
    board.start()
    board.workers.tick()
    assert board.child().process is not None


def test_stop_ends_it_and_forgets_it(board: Board) -> None:
    """It is not started again; asked for anew, there is another; a model without a worker says so."""
    board.start()
    [first] = board.begun()
    assert board.workers.stop("m", LIMIT) is True
    assert gone(first)
    board.workers.tick()
    assert not board.workers.has("m") and board.workers.reserved() == 0
    assert board.workers.stop("m", LIMIT) is False
    board.start()
    assert board.begun(2)[1] == board.pid() != first


def test_stop_in_a_pause_leaves_nothing(board: Board, clock: Clock) -> None:
    """There is no process to end, and none comes."""
    board.line = DIES
    board.start()
    board.dead()
    board.workers.tick()
    assert board.workers.stop("m", LIMIT) is True
    clock.now += 1000
    board.workers.tick()
    assert len(board.begun()) == 1


def test_who_does_not_leave_is_killed_after_the_grace(board: Board) -> None:
    """And the one that asked is told when it is really over."""
    board.line = STUBBORN
    board.start()
    [pid] = board.begun()
    assert board.workers.stop("m", 0.1) is True
    assert gone(pid)


def test_stop_all_asks_all_before_it_waits_for_any(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not leave takes the others' grace from nobody, and nothing is left."""
    wait_or_kill = module.wait_or_kill

    def wait(processes: Sequence[WorkerProcess], grace: float) -> None:
        eventually(lambda: (board.folder / "told").exists(), what="SIGTERM for the second")
        wait_or_kill(processes, grace)

    monkeypatch.setattr(module, "wait_or_kill", wait)
    board.line = STUBBORN
    board.start("stubborn")
    board.begun()
    board.line = "echo $$ >> started; trap 'echo told >> told; exit' TERM; while :; do sleep 0.05; done"
    board.start("polite")
    pids = board.begun(2)
    board.workers.stop_all(0.1)
    assert all(gone(pid) for pid in pids)
    board.workers.stop_all(0.0)  # twice is safe


def test_further_workers_of_a_model_come_and_go_with_the_first(board: Board) -> None:
    """Each holds its memory, and is told its number; all of them are stopped together."""
    board.start(memory=100)
    board.workers.start(board.model(), 100, 4, number=2)
    first, second = board.child("m").process, board.child("m#2").process
    assert isinstance(second, subprocess.Popen) and isinstance(second.args, list)
    assert second.args[-4:] == ["--memory-domain", "4", "--instance", "2"]
    assert first is not None and board.workers.living() == {"m": first.pid, "m#2": second.pid}
    assert board.workers.sizes() == {"m": 200} and board.workers.reserved() == 200
    assert board.workers.places(leaving=False) == {"m#2": (4, 100)}
    assert board.workers.names("m") == ["m", "m#2"] and board.workers.oldest() == ["m"]
    assert board.workers.stop("m", LIMIT) is True
    assert gone(first.pid) and gone(second.pid)
    assert board.workers.ended() == {"m", "m#2"} and board.workers.reserved() == 0


def test_a_worker_left_behind_is_adopted(board: Board, other_worker: subprocess.Popen[bytes]) -> None:
    """Not started a second time: two would hold the model twice."""
    board.start()
    board.workers.tick()
    assert board.pid() == other_worker.pid
    assert not (board.folder / "started").exists()
    assert board.workers.note("m") is None


def test_an_adopted_worker_is_known_by_its_memory_domain(tmp_path: Path, board: Board) -> None:
    """It stands on its command line; where it does not, it is the one that is given."""
    code = (
        "import pathlib, sys, threading; from tasks import worker_lock; "
        "worker_lock.take(pathlib.Path(sys.argv[1]), 'm'); print('held', flush=True); threading.Event().wait()"
    )
    for put, domain in ((["--memory-domain", "3"], 3), ([], 5)):
        command = [sys.executable, "-c", code, str(tmp_path), *put]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            assert board.workers.adopt(board.model(), 100, 5)
            assert board.workers.places(leaving=False) == {"m": (domain, 100)}
            board.workers.stop("m", LIMIT)


def test_an_adopted_worker_that_dies_is_started_again(board: Board, other_worker: subprocess.Popen[bytes]) -> None:
    """Also where nobody collects the dead, so that its number stays taken by a zombie."""
    board.start()
    os.kill(other_worker.pid, 9)
    eventually(lambda: psutil.Process(other_worker.pid).status() == psutil.STATUS_ZOMBIE, what="a zombie")
    board.workers.tick()
    assert board.child().process is None and board.child().deaths == 1
    board.start()
    board.workers.tick()
    assert board.begun() == [board.pid()]


def test_an_adopted_worker_is_stopped(board: Board, other_worker: subprocess.Popen[bytes]) -> None:
    """Like one's own child."""
    board.start()
    assert board.workers.stop("m", LIMIT) is True
    assert gone(other_worker.pid)
    assert worker_lock.holder(board.folder, "m") is None


def test_an_adopted_worker_that_does_not_leave_is_killed(tmp_path: Path, board: Board) -> None:
    """After the grace, as its own child would be."""
    code = (
        "import pathlib, signal, sys, threading; from tasks import worker_lock; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "worker_lock.take(pathlib.Path(sys.argv[1]), 'm'); print('held', flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        board.start()
        assert board.workers.stop("m", 0.1) is True
        assert gone(process.pid)


def test_only_what_an_earlier_agent_left_is_taken_over(
    board: Board, other_worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Taking over starts nothing; what was taken over is one's own from then on."""
    path = worker_lock.lock_path(tmp_path, "n")
    path.write_text("1")
    assert worker_lock.held(tmp_path) == ["m"]
    assert board.workers.adopt(board.model("n"), 50) is False
    assert board.workers.adopt(board.model("m"), 100) is True
    assert board.workers.living() == {"m": other_worker.pid} and board.workers.reserved() == 100
    assert board.workers.adopt(board.model("m"), 100) is False
    assert not (board.folder / "started").exists()


def test_one_that_nobody_took_over_is_stopped_by_its_model(board: Board, other_worker: subprocess.Popen[bytes]) -> None:
    """An agent need not have wanted it to be rid of it."""
    assert board.workers.stop("m", LIMIT) is True
    assert gone(other_worker.pid)
    assert board.workers.stop("m", LIMIT) is False


def test_a_stranger_whose_number_is_in_the_lock_is_no_worker(
    board: Board, other_worker: subprocess.Popen[bytes]
) -> None:
    """What a dead worker left may hold its lock for a while, and its number be given to somebody else."""
    with subprocess.Popen(["/bin/sleep", "1000"]) as stranger:
        try:
            worker_lock.lock_path(board.folder, "m").write_text(str(stranger.pid))
            assert board.workers.adopt(board.model(), 0) is False
            assert board.workers.stop("m", 0.0) is False
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_the_lock_is_no_worker(board: Board) -> None:
    """A file left by one that is gone, whatever it says, is not adopted."""
    path = worker_lock.lock_path(board.folder, "m")
    path.parent.mkdir(parents=True)
    path.write_text(str(os.getpid()))
    board.start()
    assert board.begun() == [board.pid()]


def test_whoever_is_wanted_again_starts_after_the_one_that_leaves(board: Board) -> None:
    """It is never adopted, though it still holds the lock: that would be the death of the new one."""
    code = (
        "import os, pathlib, signal, sys, threading; from tasks import worker_lock; here = pathlib.Path(sys.argv[1]); "
        "worker_lock.take(here, 'm'); go = threading.Event(); "
        "signal.signal(signal.SIGTERM, lambda *_: ((here / 'told').touch(), go.set())); "
        "(here / 'started').write_text(str(os.getpid()) + chr(10)); go.wait(); "
        "[threading.Event().wait(0.02) for _ in iter(lambda: (here / 'go').exists(), True)]"
    )
    board.line = f"cd {ROOT} && exec {sys.executable} -c {shlex.quote(code)} {board.folder}"
    board.start()
    [first] = board.begun()
    stopping = threading.Thread(target=board.workers.stop, args=("m", LIMIT))
    stopping.start()
    eventually(lambda: (board.folder / "told").exists(), what="the word to leave")
    board.line = LIVES
    board.start()
    board.workers.tick()
    assert board.workers.has("m") and board.child().process is None
    assert worker_lock.holder(board.folder, "m") == first
    (board.folder / "go").touch()
    stopping.join(LIMIT)
    assert gone(first)
    board.workers.tick()
    assert board.begun(2) == [first, board.pid()]
    assert board.workers.note("m") is None


def test_stop_all_waits_for_those_that_leave_already(board: Board) -> None:
    """An agent that ends leaves nobody behind whom it has told to go."""
    board.line = STUBBORN
    board.start()
    [pid] = board.begun()
    stopping = threading.Thread(target=board.workers.stop, args=("m", LIMIT))
    stopping.start()
    eventually(lambda: not board.workers.has("m"), what="the stop")
    board.workers.stop_all(0.1)
    assert gone(pid)
    stopping.join(LIMIT)


def test_none_comes_after_all_were_stopped(board: Board, other_worker: subprocess.Popen[bytes]) -> None:
    """Whoever began to load while the agent was told to leave is refused in words, and nothing is left behind."""
    board.start("n")
    [pid] = board.begun()
    board.workers.stop_all(0.0)
    for name in "mn":
        with pytest.raises(ModelRefused, match=f"'{name}' cannot be loaded: this board is being stopped"):
            board.start(name)
    assert not board.workers.adopt(board.model("m"), 0)
    board.workers.tick()
    assert board.workers.living() == {} and not board.workers.has("n")
    assert board.begun() == [pid] and gone(pid)


def test_a_kill_takes_the_whole_family(board: Board) -> None:
    """Its child, which leads a group of its own, and an orphan of its group, which is nobody's child any more: each may
    hold the model, and a stopped one would never notice. The worker is started again like any other."""
    child = "setsid sh -c 'echo $$ >> started; exec sleep 1000' &"
    orphan = "sh -c 'sh -c \"echo \\$\\$ >> started; exec sleep 1000\" &';"
    board.line = f"{child} {orphan} echo $$ >> started; wait"
    board.start()
    pids = board.begun(3)
    assert len({os.getpgid(pid) for pid in pids}) == 2
    assert len({psutil.Process(pid).ppid() for pid in pids} & {board.pid()}) == 1
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert board.workers.living() == {"m": board.pid()}
    board.workers.kill("m", board.pid() + 1)  # the one before it, which somebody thinks is there
    assert board.workers.living() == {"m": board.pid()} and not any(map(gone, pids))
    board.workers.kill("m", board.pid())
    eventually(lambda: all(gone(pid) for pid in pids), what="the end of all")
    board.dead()
    board.workers.tick()
    assert board.workers.note("m") == "its worker died 1 times in a row (last exit code -9)"
    assert board.workers.living() == {}
    board.workers.kill("m", pids[0])  # there is none to kill
    board.start()
    board.workers.tick()
    assert board.begun(6)


def test_one_that_cannot_be_started_holds_up_no_other(board: Board, clock: Clock) -> None:
    """It is tried again after a pause, like one that died."""
    real = board._command
    board.workers.command = lambda model: [f"{board.folder}/nothing"] if model.id == "m" else real(model)
    board.start("m")
    board.start("n")
    assert board.begun() == [board.pid("n")]
    assert board.child("m").start_at - clock.now == 1
    assert "could not be started" in (board.workers.note("m") or "")
    board.workers.command = real
    clock.now += 1
    board.workers.tick()
    assert board.begun(2)[1] == board.pid("m")


def test_whatever_has_ended_is_told_once(board: Board) -> None:
    """Dead by itself, stopped, killed with all others: whoever hears of it sees to what it held."""
    for name in "abc":
        board.start(name)
    assert board.workers.ended() == set()
    board.child("a").process.kill()  # type: ignore[union-attr]
    board.dead("a")
    board.workers.tick()
    assert (board.workers.ended(), board.workers.ended()) == ({"a"}, set())
    board.workers.stop("b", 10)
    assert board.workers.ended() == {"b"}
    board.workers.stop_all(0.0)
    assert board.workers.ended() == {"a", "c"}
