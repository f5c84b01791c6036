"""What the parts write: kept in bounded files, and shown on the terminal line by line."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

LOG_LIMIT = 1_000_000
"""Bytes of one log file; it and its predecessor are kept."""
LINE_LIMIT = 64 * 1024
"""Bytes after which a line without an end is cut."""
TAIL = 20
"""Last lines of a part that are repeated when it fails."""


class LogFile:
    """A log file that never grows beyond its limit: when full it becomes `NAME.1` and begins anew."""

    def __init__(self, path: Path, limit: int = LOG_LIMIT) -> None:
        self.path = path
        self._limit = limit
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append. A full disk loses lines, never the service."""
        with contextlib.suppress(OSError):
            if self._file.tell() + len(data) > self._limit:
                self._file.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self._file = self.path.open("ab", buffering=0)
            self._file.write(data)

    def close(self) -> None:
        """Close the file. Twice is safe."""
        self._file.close()


class Terminal:
    """Writes to stderr from a thread of its own: a terminal that was paused with Ctrl-S must not stop the service."""

    def __init__(self, fd: int = 2, waiting: int = 1000) -> None:
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._write, name="terminal", daemon=True)
        self._thread.start()

    def show(self, line: bytes) -> None:
        """Show one line soon; drop it when too many wait already (the log files have it)."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self, patience: float = 1.0) -> None:
        """Show what waits, but not for ever."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(patience)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(self._fd, line)


class Output:
    """The read end of one part's stdout and stderr."""

    def __init__(self, fd: int, log: LogFile, tail: deque[str], show: Callable[[bytes], None] | None = None) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._log = log
        self._tail = tail
        self._show = show
        self._begun = b""

    def read(self) -> bool:
        """Take what there is; false when nothing can follow."""
        try:
            data = os.read(self.fd, 64 * 1024)
        except BlockingIOError:
            return True
        *lines, self._begun = (self._begun + data).split(b"\n")
        if not data or len(self._begun) > LINE_LIMIT:
            lines.append(self._begun)
            self._begun = b""
        for line in lines:
            if line:
                self._tail.append(line.decode(errors="replace"))
                self._log.write(line + b"\n")
                if self._show is not None:
                    self._show(line + b"\n")
        return bool(data)

    def close(self) -> None:
        """Close the pipe. Twice is safe."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
