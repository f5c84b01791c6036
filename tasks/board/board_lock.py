"""One agent a board: what makes a second one stop before it touches the workers of the first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from tasks.errors import TasksError
from tasks.worker_lock import ORPHAN_PATIENCE


class BoardRefused(TasksError):
    """Raised when this agent must not run: another one has its data directory or its name, or that directory is of no use."""

    usage: ClassVar = True
    """It would not start a second later either."""


@contextmanager
def only_agent(data_dir: Path, board: str, url: str, patience: float = ORPHAN_PATIENCE) -> Iterator[None]:
    """Be the only agent with this data directory, and the only one of this machine that a Redis, at `url`, knows by this name.

    The kernel lets go of both however the process ends; for `patience` seconds what a killed agent left behind is waited
    for. Raises `BoardRefused`.
    """
    with ExitStack() as stack:
        path = _path(data_dir)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise BoardRefused(
                f"The data directory {data_dir} cannot be used ({error.strerror}); choose one that this user may write to "
                "with --data-dir."
            ) from error
        stack.callback(os.close, file)
        if (pid := _wait(lambda: _lock(file), lambda: _written(file), patience)) is not None:
            raise BoardRefused(
                f"Another board agent (process {pid or 'unknown'}) already uses the data directory {data_dir}. Stop it first; "
                "one agent keeps the workers of all models of a board."
            )
        os.truncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        name = stack.enter_context(closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
        address = _address(board, url)
        if (pid := _wait(lambda: _bind(name, address), lambda: _listener(address), patience)) is not None:
            raise BoardRefused(
                f"Another board agent on this machine (process {pid or 'unknown'}) is already called '{board}', and is with "
                "the same Redis. Stop it first, or give this one a name of its own with ROCKCHIPLLAMA_BOARD_NAME."
            )
        yield


def holder(data_dir: Path) -> int | None:
    """The process of the agent that has this data directory, 0 when unknown; None when no agent has it."""
    try:
        file = os.open(_path(data_dir), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return None if _lock(file) else _written(file)
    finally:
        os.close(file)


def _path(data_dir: Path) -> Path:
    return data_dir / "run" / "board.lock"


def _wait(take: Callable[[], bool], holder: Callable[[], int], patience: float) -> int | None:
    """None once it is taken, else the process that has it, 0 when unknown."""
    give_up = time.monotonic() + patience
    while not take():
        pid = holder()
        # An agent that was killed hard leaves a child that renders templates, which notices a moment later.
        if Path(f"/proc/{pid}").exists() or time.monotonic() > give_up:
            return pid
        time.sleep(0.05)
    return None


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written(file: int) -> int:
    written = os.pread(file, 20, 0)
    return int(written) if written.isdigit() else 0


def _address(board: str, url: str) -> bytes:
    """A name that the machine's kernel knows no longer than somebody has it; nothing secret of the URL is in it."""
    parts = urlsplit(url)
    where = (parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), *parse_qs(parts.query).get("db", ()), board)
    return b"\0rockchipllama/board/" + hashlib.sha256("\n".join(where).encode()).hexdigest()[:32].encode()


def _bind(name: socket.socket, address: bytes) -> bool:
    try:
        name.bind(address)
    except OSError:
        return False
    name.listen()
    return True


def _listener(address: bytes) -> int:
    """The process that took the name; 0 when it cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(address)
            said = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return 0
        return int(struct.unpack("3i", said)[0])
