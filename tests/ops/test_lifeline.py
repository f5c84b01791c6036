"""The pipe that ties a process to its `up`, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ops import environment
from tasks import lifeline

LIMIT = 60.0


def start(script: str, fd: int | None) -> subprocess.Popen[str]:
    """A process that runs `script` and prints a line when it is ready."""
    extra = {} if fd is None else {lifeline.VARIABLE: str(fd)}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment.for_child(extra),
        pass_fds=() if fd is None else (fd,),
    )


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_closed_pipe_is_sigterm(pipe: tuple[int, int]) -> None:
    """What a process does on SIGTERM, it does when `up` is gone."""
    script = """
import signal, sys, time
from tasks import lifeline
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
lifeline.watch()
print("ready", flush=True)
while True: time.sleep(1)
"""
    process = start(script, pipe[0])
    os.close(pipe[0])
    assert ready(process) == "ready"
    assert process.poll() is None
    os.close(pipe[1])
    assert process.wait(LIMIT) == 7


def test_whoever_ignores_sigterm_leaves_after_the_grace(pipe: tuple[int, int]) -> None:
    """The end comes from a thread, so a stuck main thread changes nothing."""
    script = """
import signal, time
from tasks import lifeline
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lifeline.watch(grace=0.05)
print("ready", flush=True)
while True: time.sleep(1)
"""
    process = start(script, pipe[0])
    os.close(pipe[0])
    assert ready(process) == "ready"
    os.close(pipe[1])
    assert process.wait(LIMIT) == 1


def test_a_forked_child_watches_anew(pipe: tuple[int, int]) -> None:
    """A fork has the descriptor but not the thread; a second call in it starts one."""
    script = """
import os, time
from tasks import lifeline
lifeline.watch(lambda: None)
if os.fork() == 0:
    lifeline.watch(lambda: os._exit(0), grace=60)
    print("ready", os.getpid(), flush=True)
    time.sleep(600)
os.wait()
print("child left", flush=True)
os._exit(9)
"""
    process = start(script, pipe[0])
    os.close(pipe[0])
    assert ready(process).startswith("ready")
    os.close(pipe[1])
    assert ready(process) == "child left"
    assert process.wait(LIMIT) == 9


def test_without_the_variable_nothing_happens() -> None:
    """Under systemd, under compose, by hand."""
    process = start("from tasks import lifeline; lifeline.watch(); print(lifeline.fds(), flush=True)", None)
    assert ready(process) == "()"
    assert process.wait(LIMIT) == 0


def test_a_descriptor_that_was_not_passed_on_is_said() -> None:
    """The variable alone ties nothing; better a warning than a process that stays for ever unnoticed."""
    script = f"""
import os
os.environ[{lifeline.VARIABLE!r}] = "250"
from tasks import lifeline
lifeline.watch()
"""
    process = start(script, None)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert "lifeline was not inherited" in errors


def test_a_killed_writer_counts_as_gone(pipe: tuple[int, int]) -> None:
    """No orderly closing is needed: the kernel does it."""
    script = """
import os, time
from tasks import lifeline
lifeline.watch(lambda: os._exit(5))
print("ready", flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=(pipe[1],))
    process = start(script, pipe[0])
    os.close(pipe[0])
    os.close(pipe[1])
    assert ready(process) == "ready"
    owner.send_signal(signal.SIGKILL)
    owner.wait(LIMIT)
    assert process.wait(LIMIT) == 5
