"""Whether anybody on this board is at a job: a lock that its workers share while they are."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("rockchipllama.worker")


@contextmanager
def at_work(data_dir: Path) -> Iterator[None]:
    """Be at a job. The kernel lets go of it however the process ends."""
    try:
        descriptor = _open(data_dir)
    except OSError as error:
        log.warning("the board's agent cannot be told that a job runs: %s", error)
        yield  # its clocks stay low, which is no reason to fail a job
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has it open, too
        os.close(descriptor)


def anybody_at_work(data_dir: Path) -> bool:
    """Whether a worker is. Raises `OSError`."""
    descriptor = _open(data_dir)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _open(data_dir: Path) -> int:
    path = data_dir / "run" / "at-work"
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
