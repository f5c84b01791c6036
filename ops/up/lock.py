"""Who owns a data directory: one `up` at a time, and nothing of an earlier one still at work in it.

Two locks, because they answer different questions. `up.lock` is held by `up` alone: taken means that a service runs.
`parts.lock` is inherited by the parts: taken while `up.lock` is free means that an earlier `up` was killed hard and
its parts are about to leave. The kernel drops both with their last holder, so neither can be stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ops.up.errors import AlreadyRunning, PartFailed, UpError

log = logging.getLogger("rockchipllama.up")

FILE = "up.lock"
PATIENCE = 20.0
"""Seconds the parts of an earlier run get to leave; their own limit (`tasks.lifeline.GRACE`) is far below."""


class DataDirLock:
    """The exclusive right to a data directory, as a context manager."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._up = -1
        self.parts = -1
        """The descriptor every part must inherit."""

    def __enter__(self) -> Self:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self._up = os.open(self.data_dir / FILE, os.O_RDWR | os.O_CREAT, 0o600)
            self.parts = _above_nine(os.open(self.data_dir / "parts.lock", os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            self.release()
            why = "it is a file" if self.data_dir.is_file() else error.strerror
            raise UpError(
                f"The data directory {self.data_dir} cannot be used ({why}); "
                "choose one that this user may write to with --data-dir."
            ) from error
        if not _try(self._up):
            running = self._written()
            self.release()
            raise AlreadyRunning(
                f"RockchipLlama already runs from the data directory {self.data_dir}{running}; "
                "stop it first, or give this one its own with --data-dir and --port."
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def wait_for_parts(
        self, say: Callable[[str], None], pause: Callable[[float], None], patience: float = PATIENCE
    ) -> None:
        """Return once no part of an earlier run is left. Raises `PartFailed` after `patience` seconds.

        `pause` waits so many seconds, or raises when waiting is no longer wanted.
        """
        told = False
        deadline = time.monotonic() + patience
        while not _try(self.parts):
            if not told:
                say("An earlier run was killed; waiting for its last processes to leave.")
                told = True
            if time.monotonic() > deadline:
                raise PartFailed(
                    f"Processes of an earlier run still use {self.data_dir} after {patience:.0f} s; "
                    f"`fuser {self.data_dir / 'parts.lock'}` shows them. End them and start again."
                )
            pause(0.05)

    def write(self, url: str) -> None:
        """Leave word where this one serves, for a second `up` and for who asks how this one is."""
        try:
            os.ftruncate(self._up, 0)
            os.pwrite(self._up, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)
        except OSError as error:  # a full disk; only the sentence for a second `up` is poorer for it
            log.warning("%s cannot be written to: %s", self.data_dir, error)

    def release(self) -> None:
        """Let both locks go. Twice is safe. A part that is still alive keeps `parts.lock` taken."""
        if self._up >= 0:
            os.close(self._up)
        if self.parts >= 0:
            os.close(self.parts)
        self._up = self.parts = -1

    def _written(self) -> str:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            word = json.loads(os.pread(self._up, 4096, 0))
            return f" at {word['url']} (process {word['pid']})"
        return ""


def served(data_dir: Path) -> str | None:
    """Where the `up` serves that runs from this data directory; None where none does, or it is another user's."""
    try:
        word = json.loads((data_dir / FILE).read_bytes())
        os.kill(word["pid"], 0)  # asks only whether it is there; trying its lock could refuse an `up` that starts
        return str(word["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _above_nine(fd: int) -> int:
    # Descriptors of one digit are for the shell that guards Valkey to use as it likes.
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(fd)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
