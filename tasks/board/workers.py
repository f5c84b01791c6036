"""The worker processes of one board: started, watched, restarted with growing pauses, stopped."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from npu.model import Model
from tasks import worker_lock

log = logging.getLogger("rockchipllama.board")

STEADY = 60.0
"""Seconds a worker must live for its next death to count as its first."""


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


@dataclass
class WorkerChild:
    """One worker process, or the intent to have one again at `start_at` (monotonic seconds)."""

    model: Model
    memory_bytes: int
    process: subprocess.Popen[bytes] | Adopted | None = None
    started: float = 0.0
    start_at: float = 0.0
    deaths: int = 0
    last_exit: int | None = None
    stopping: bool = False


@dataclass
class Workers:
    """At most one worker per model. `tick` is called often by the agent's loop; any method from any thread."""

    command: Callable[[Model], list[str]]
    data_dir: Path
    longest_pause: float
    pass_fds: tuple[int, ...]
    _children: dict[str, WorkerChild] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, model: Model, memory_bytes: int) -> None:
        """Have a worker of this model from now on. One that is there already stays as it is."""
        with self._lock:
            child = self._children.get(model.id)
            if child is None or child.stopping:
                child = self._children[model.id] = WorkerChild(model, memory_bytes)
                self._spawn(child)
            else:
                child.start_at = 0.0  # somebody wants it now: no more waiting after a death

    def stop(self, model_id: str, grace: float) -> bool:
        """Stop the worker of a model; False when there is none. Waits at most `grace` seconds, then kills."""
        with self._lock:
            child = self._children.pop(model_id, None)
        if child is None:
            return False
        child.stopping = True
        _end([child], grace)
        return True

    def stop_all(self, grace: float) -> None:
        """Stop every worker, together."""
        with self._lock:
            children, self._children = list(self._children.values()), {}
        _end(children, grace)

    def reserved(self) -> int:
        """Bytes of memory that the models of all workers were estimated at."""
        with self._lock:
            return sum(child.memory_bytes for child in self._children.values())

    def has(self, model_id: str) -> bool:
        """Whether there is a worker of this model, or will be again."""
        with self._lock:
            return model_id in self._children

    def note(self, model_id: str) -> str | None:
        """What to tell people about a worker that keeps dying; None when all is well."""
        with self._lock:
            child = self._children.get(model_id)
            if child is None or child.deaths == 0:
                return None
            return f"its worker died {child.deaths} times in a row (last exit code {child.last_exit})"

    def tick(self) -> None:
        """Notice the dead, and start again whoever has waited long enough."""
        now = time.monotonic()
        with self._lock:
            for child in self._children.values():
                if child.process is not None and child.process.poll() is not None:
                    self._bury(child, now)
                if child.process is None and now >= child.start_at:
                    self._spawn(child)

    def _bury(self, child: WorkerChild, now: float) -> None:
        assert child.process is not None
        child.last_exit = child.process.returncode
        child.deaths = child.deaths + 1 if now - child.started < STEADY else 1
        pause = min(self.longest_pause, 2.0 ** (child.deaths - 1))
        child.start_at = now + pause
        child.process = None
        log.error(
            "the worker of %s ended with code %s; starting it again in %.0f s", child.model.id, child.last_exit, pause
        )

    def _spawn(self, child: WorkerChild) -> None:
        child.started = time.monotonic()
        pid = worker_lock.holder(self.data_dir, child.model.id)
        if pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.process = Adopted(pid)
                log.info("adopted the worker of %s pid=%d", child.model.id, pid)
                return
        child.process = subprocess.Popen(
            self.command(child.model), stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=self.pass_fds
        )
        log.info("started a worker of %s pid=%d", child.model.id, child.process.pid)


def worker_command(model: Model) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "ops.cli.main", "worker", model.id]


def _lives(process: psutil.Process) -> bool:
    # Where nobody reaps orphans (a container whose first process is no init), the dead stay as zombies for ever.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _end(children: list[WorkerChild], grace: float) -> None:
    living = [child.process for child in children if child.process is not None and child.process.poll() is None]
    for process in living:
        process.terminate()
    deadline = time.monotonic() + grace
    for process in living:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("worker pid=%d did not stop within %.0f s and was killed", process.pid, grace)
            process.kill()
            process.wait()
