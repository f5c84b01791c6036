"""Worker processes as an agent holds them: its own children, and those that an earlier agent left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import psutil

from tasks import worker_lock

log = logging.getLogger("rockchipllama.board")


class Adopted:
    """A worker that an earlier agent started and left behind: watched by its number, for it is no child of ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._process = psutil.Process(pid)

    def poll(self) -> int | None:
        """None while it lives. How it ended, nobody told us."""
        if self.returncode is None and not _lives(self._process):
            self.returncode = 0
        return self.returncode

    def has_open(self, path: Path) -> bool:
        """Whether it holds the lock that names it: what a dead worker left may hold it, and the number be another's now."""
        return str(path.resolve()) in {file.path for file in self._process.open_files()}

    def option(self, name: str) -> str | None:
        """What stands behind an option on its command line; None where it has none such, or is gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            words = self._process.cmdline()
            return words[words.index(name) + 1] if name in words[:-1] else None
        return None

    def terminate(self) -> None:
        """Ask it to leave."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.terminate()

    def kill(self) -> None:
        """End it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises `subprocess.TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (ended := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0)
            time.sleep(0.02)
        return ended


WorkerProcess: TypeAlias = "subprocess.Popen[bytes] | Adopted"


def adopt(data_dir: Path, model: str) -> Adopted | None:
    """The worker that holds the model's lock on this board; None when none does, or only what a dead one left behind."""
    pid = worker_lock.holder(data_dir, model)
    if pid is None:
        return None
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        found = Adopted(pid)
        if found.poll() is None and found.has_open(worker_lock.lock_path(data_dir, model)):
            return found
    return None


def kill(process: WorkerProcess) -> None:
    """End a worker at once, with all it started: its child holds the model, and would go on without it for a while."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        # One that was started by hand may share its group with others.
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for relative in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            relative.kill()


def wait_or_kill(processes: Iterable[WorkerProcess], grace: float) -> None:
    """Wait for processes that were asked to leave, `grace` seconds for all of them, and kill who is left."""
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("worker pid=%d did not stop within %.0f s and was killed", process.pid, grace)
            kill(process)
            process.wait()


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be buried."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return _lives(psutil.Process(pid))
    return False


def _lives(process: psutil.Process) -> bool:
    # Where nobody reaps orphans (a container whose first process is no init), the dead stay as zombies for ever.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
