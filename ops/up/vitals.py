"""The signs of life of the parts that `up` started, handed on to systemd, which starts all anew when one stands still.

Only where systemd listens. Each part has a socket of its own, so that nobody speaks for another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from ops.up.part import Part, now
from tasks import systemd

log = logging.getLogger("rockchipllama.up")

FIRST_WORD = 120.0
"""Seconds that a part may take to its first sign of life: it reads its libraries from an SD card."""


class Ear:
    """Where one part says that it is ready, and that it lives."""

    def __init__(self, path: Path, on_ready: Callable[[], None]) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._on_ready = on_ready
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._sock.bind(os.fspath(path))
        self.fd = self._sock.fileno()
        self.heard = now()
        """When it last spoke."""

    def read(self) -> bool:
        """Take what was said; true, since there may be more."""
        with contextlib.suppress(BlockingIOError):
            lines = self._sock.recv(4096).decode(errors="replace").splitlines()
            self.heard = now()
            if "READY=1" in lines:
                self._on_ready()
        return True

    def close(self) -> None:
        """Hear nothing more. Twice is safe."""
        self._sock.close()
        self._path.unlink(missing_ok=True)


class Vitals:
    """Whether all parts live, as far as they say so themselves."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        """`folder` tells where sockets may lie, which is private."""
        self._folder = folder
        self._pulse = systemd.Pulse()
        self._ears: dict[str, Ear] = {}
        self._silent: set[str] = set()

    @property
    def pause(self) -> float | None:
        """Seconds after which `look` is due again; None: never."""
        return self._pulse.pause

    def listen_to(self, name: str, on_ready: Callable[[], None] = lambda: None) -> tuple[Ear | None, dict[str, str]]:
        """Where a part will speak, and the variables that tell it so; nothing of it where systemd does not listen."""
        if not systemd.listens():
            return None, {}
        path = self._folder() / f"{name}.notify"
        ear = self._ears[name] = Ear(path, on_ready)
        told = {systemd.SOCKET: os.fspath(path)}
        if self.pause is not None:
            told[systemd.WATCHDOG] = str(int(self.pause * 1e6))
        return ear, told

    def look(self, parts: Iterable[Part]) -> None:
        """Tell systemd that all live, when they do."""
        if self.pause is None:
            return
        silent = {part.name for part in parts if self._is_silent(part, self.pause)}
        for name in sorted(silent - self._silent):
            log.error("%s gives no sign of life; systemd is not told any more that all is well", name)
        self._silent = silent
        if not silent:
            self._pulse.beat()

    def _is_silent(self, part: Part, limit: float) -> bool:
        ear = self._ears.get(part.name)
        if ear is None or part.pid is None:
            return False
        if ear.heard < part.started:
            return now() - part.started > FIRST_WORD
        return now() - ear.heard > limit

    def close(self) -> None:
        """Hear nothing more. Twice is safe."""
        for ear in self._ears.values():
            ear.close()
