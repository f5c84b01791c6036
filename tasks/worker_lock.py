"""One worker per model on a board: a lock that a worker holds for its life, and that tells an agent which one to adopt."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tasks.errors import TasksError

ORPHAN_PATIENCE = 30.0
"""Seconds the child of a worker that died may take to leave."""


class AlreadyServed(TasksError):
    """Raised when another process on this board is the worker of this model. `pid` is its process, 0 when unknown."""

    def __init__(self, model: str, pid: int) -> None:
        self.pid = pid
        super().__init__(
            f"Another process (pid {pid or 'unknown'}) on this board already serves '{model}'. "
            "Stop it first, or give this one a data_dir and a board_name of its own."
        )


def lock_path(data_dir: Path, model: str) -> Path:
    """Where the lock of a model's worker lies."""
    return data_dir / "run" / f"{model}.worker"


def take(data_dir: Path, model: str) -> int:
    """Take the lock for the life of this process and its children; the descriptor that holds it.

    The kernel lets go of it however the process ends. Raises `AlreadyServed`.
    """
    path = lock_path(data_dir, model)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up = time.monotonic() + ORPHAN_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pid = _pid(descriptor)
            # A worker that was killed hard leaves a child, which holds the model until it notices, too.
            if Path(f"/proc/{pid}").exists() or time.monotonic() > give_up:
                os.close(descriptor)
                raise AlreadyServed(model, pid) from None
            time.sleep(0.1)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def held(data_dir: Path) -> list[str]:
    """The models that have a worker on this board."""
    locks = lock_path(data_dir, "*")
    models = sorted(path.stem for path in locks.parent.glob(locks.name))
    return [model for model in models if holder(data_dir, model) is not None]


def holder(data_dir: Path, model: str) -> int | None:
    """The process that serves the model on this board, 0 when it is just starting; None when there is none."""
    try:
        descriptor = os.open(lock_path(data_dir, model), os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _pid(descriptor: int) -> int:
    written = os.pread(descriptor, 20, 0)
    return int(written) if written.isdigit() else 0
