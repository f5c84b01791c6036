"""A second agent of a board is refused, with what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.board.board_lock import BoardRefused, only_agent
from tasks.settings import ROOT
from tests.stack import LIMIT

URL = "redis://:secret@127.0.0.1:1/0"
AGENT = """
import os, pathlib, sys
from tasks.board.board_lock import only_agent
with only_agent(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]):
    if "leaves a child" in sys.argv and (child := os.fork()):
        print(child, flush=True)
        os._exit(0)
    elif "leaves a child" not in sys.argv:
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""
"""Holds both until its input closes; told to, by a child that it leaves behind."""

Start = Callable[..., int]


@pytest.fixture
def name() -> str:
    """A name that no other test of this machine has."""
    return f"board-{os.getpid()}"


@pytest.fixture
def start(tmp_path: Path, name: str) -> Iterator[Start]:
    """Starts an agent; the number of the process that is the one."""
    running: list[subprocess.Popen[str]] = []

    def starting(*more: str) -> int:
        command = [sys.executable, "-c", AGENT, str(tmp_path / "first"), name, URL, *more]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        running.append(process)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        if more:
            process.wait(LIMIT)
        return pid

    yield starting
    for process in running:
        process.kill()
        process.communicate(timeout=LIMIT)


def test_a_data_directory_has_one_agent(start: Start, tmp_path: Path, name: str) -> None:
    """Also under another name, since it would adopt the workers of the first; which that is, is said."""
    pid = start()
    with (
        pytest.raises(BoardRefused, match=rf"process {pid}\).*{tmp_path / 'first'}.*Stop it first"),
        only_agent(tmp_path / "first", f"{name}-other", URL),
    ):
        pass


def test_a_machine_has_one_agent_of_a_name(start: Start, tmp_path: Path, name: str) -> None:
    """With one Redis: there the two would be one board. By another name, or for another Redis, it may run."""
    pid = start()
    for url in (URL, "redis://somebody:else@127.0.0.1:1/0"):
        with (
            pytest.raises(BoardRefused, match=rf"process {pid}\).*'{name}'.*ROCKCHIPLLAMA_BOARD_NAME"),
            only_agent(tmp_path / "second", name, url),
        ):
            pass
    with only_agent(tmp_path / "second", f"{name}-other", URL), only_agent(tmp_path / "third", name, URL[:-1] + "1"):
        pass


def test_an_agent_that_was_killed_is_not_in_the_way(start: Start, tmp_path: Path, name: str) -> None:
    """Nothing is left that somebody would have to delete."""
    os.kill(pid := start(), signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with only_agent(tmp_path / "first", name, URL):
        pass


def test_what_a_killed_agent_left_is_waited_for(start: Start, tmp_path: Path, name: str) -> None:
    """For its child is about to leave; one that does not is told."""
    child = start("leaves a child")
    with pytest.raises(BoardRefused, match="already uses"), only_agent(tmp_path / "first", name, URL, patience=0.2):
        pass
    os.kill(child, signal.SIGKILL)
    with only_agent(tmp_path / "first", name, URL):
        pass


def test_a_data_directory_that_is_of_no_use_is_told(tmp_path: Path, name: str) -> None:
    """In a sentence, as `up` does."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BoardRefused, match=r"cannot be used.*--data-dir"), only_agent(tmp_path / "file", name, URL):
        pass


def test_the_command_ends_with_the_sentence(tmp_path: Path, name: str) -> None:
    """And with the code at which `up` gives up at once: waiting would not help."""
    with only_agent(tmp_path, name, URL):
        command = [sys.executable, "-m", "ops.cli.main", "board", "--data-dir", str(tmp_path)]
        refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT)
        assert (refused.returncode, "already uses the data directory" in refused.stderr) == (2, True)
        assert "Traceback" not in refused.stderr
