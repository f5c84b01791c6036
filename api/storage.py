"""Where files lie: what people upload, and what batches write. One small interface, and a folder of this machine behind it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from tasks.files import is_file_id

log = logging.getLogger("rockchipllama.api")

NEW = 24 * 3600.0
"""Seconds for which a file that nobody knows may still be on its way."""
LOCKED = 3.0
"""Seconds for which a file that another process writes to is waited for."""
CHUNK = 256 * 1024
"""Bytes that are read or written at once."""

Result = TypeVar("Result")

Check = Callable[[], Awaitable[None]]
"""Raises what its maker says, when a file is not to be written by this process any more."""


class Storage(Protocol):
    """Files by names that we made, never by those of clients. Each method raises `OSError` when the disk or whoever keeps
    the files says no, and `FileNotFoundError` when there is none of that name."""

    async def create(self, name: str, chunks: AsyncIterable[bytes]) -> int:
        """A file of these bytes, on the disk when this returns; its size. When `chunks` raises, there is no file."""

    def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        """Its bytes from `start` on, a piece at a time."""

    async def append(self, name: str, at: int, data: bytes, mine: Check) -> None:
        """Write behind the first `at` bytes, and drop what followed them; on the disk when this returns.

        So whoever knows how far a file is good goes on there, whatever a process that died has written behind it. One that
        only froze must not: `mine` is awaited when nobody else can write any more, and raises if the file is another's now.
        """

    async def seal(self, name: str, size: int, mine: Check) -> None:
        """Nothing more will be appended; what follows the first `size` bytes is dropped. Twice is safe."""

    async def delete(self, name: str) -> None:
        """Forget the file; nothing happens when there is none."""

    async def tidy(self, known: Collection[str]) -> None:
        """Drop files of ours that are none of the `known`, unless they are new: what processes left that were killed over
        them. What is not named as our files are is somebody else's."""


class LocalStorage:
    """Files in one folder, which is made when the first one comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def create(self, name: str, chunks: AsyncIterable[bytes]) -> int:
        draft = self._folder / f".{name}"
        size = 0
        with ExitStack() as opened:
            descriptor = await to_its_end(self._open_new, draft, opened)
            async for chunk in chunks:
                await to_its_end(_write, descriptor, chunk)
                size += len(chunk)
            await to_its_end(os.fsync, descriptor)
            await to_its_end(self._put_in_place, draft, name)
        return size

    async def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk

    async def append(self, name: str, at: int, data: bytes, mine: Check) -> None:
        async with self._held(name) as descriptor:
            await mine()
            await to_its_end(_append, descriptor, name, at, data)
            if at == 0:
                await to_its_end(sync_folder, self._folder)

    async def seal(self, name: str, size: int, mine: Check) -> None:
        async with self._held(name) as descriptor:
            await mine()
            await to_its_end(_append, descriptor, name, size, b"")

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[int]:
        """The file, open, with a lock on it that the kernel takes back from whoever dies. Raises `OSError` while another
        process has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            give_up = time.monotonic() + LOCKED
            while not _lock(descriptor):
                if time.monotonic() > give_up:
                    raise OSError(f"another process writes to {name}")
                await asyncio.sleep(0.05)
            yield descriptor
        finally:
            os.close(descriptor)

    async def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    async def tidy(self, known: Collection[str]) -> None:
        await asyncio.to_thread(self._tidy, known)

    def _tidy(self, known: Collection[str]) -> None:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            ours = is_file_id(path.name.removeprefix("."))
            with suppress(FileNotFoundError):  # a draft gets its name, or another process was first
                if ours and path.name not in known and path.is_file() and time.time() - path.stat().st_mtime > NEW:
                    log.warning("a file that nobody knows is dropped: %s", path.name)
                    path.unlink()

    def _open_new(self, draft: Path, opened: ExitStack) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        opened.callback(draft.unlink, missing_ok=True)
        opened.callback(os.close, descriptor)
        return descriptor

    def _put_in_place(self, draft: Path, name: str) -> None:
        draft.replace(self._folder / name)
        sync_folder(self._folder)


def sync_folder(folder: Path) -> None:
    """Return once its names are on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _append(descriptor: int, name: str, at: int, data: bytes) -> None:
    if os.fstat(descriptor).st_size < at:
        raise OSError(f"{name} has fewer than the {at} bytes that were written to it")
    os.ftruncate(descriptor, at)
    os.lseek(descriptor, at, os.SEEK_SET)
    _write(descriptor, data)
    os.fsync(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def to_its_end(call: Callable[..., Result], *arguments: object) -> Result:
    """Run it in a thread; whoever is cancelled meanwhile, however often, goes when that has ended, since nothing stops it."""
    running = asyncio.get_running_loop().run_in_executor(None, call, *arguments)
    try:
        return await asyncio.shield(running)
    finally:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
