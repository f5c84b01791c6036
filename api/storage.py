"""Where files lie: what people upload, and what batches write. One small interface, and a folder of this machine behind it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Collection
from pathlib import Path
from typing import Protocol

log = logging.getLogger("rockchipllama.api")

NEW = 24 * 3600.0
"""Seconds for which a file that nobody knows may still be on its way."""
CHUNK = 256 * 1024
"""Bytes that are read or written at once."""


class Storage(Protocol):
    """Files by names that we made, never by those of clients. Each method raises `OSError` when the disk or whoever keeps
    the files says no, and `FileNotFoundError` when there is none of that name."""

    async def create(self, name: str, chunks: AsyncIterable[bytes]) -> int:
        """A file of these bytes, on the disk when this returns; its size. When `chunks` raises, there is no file."""

    def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        """Its bytes from `start` on, a piece at a time."""

    async def append(self, name: str, at: int, data: bytes) -> None:
        """Write behind the first `at` bytes, and drop what followed them; on the disk when this returns.

        So whoever knows how far a file is good goes on there, whatever a process that died has written behind it.
        """

    async def seal(self, name: str) -> None:
        """Nothing more will be appended. Twice is safe."""

    async def delete(self, name: str) -> None:
        """Forget the file; nothing happens when there is none."""

    async def tidy(self, known: Collection[str]) -> None:
        """Drop what is none of the `known` files, unless it is new: what processes left that were killed over it."""


class LocalStorage:
    """Files in one folder, which is made when the first one comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def create(self, name: str, chunks: AsyncIterable[bytes]) -> int:
        draft = self._folder / f".{name}"
        size = 0
        descriptor = await asyncio.to_thread(self._open_new, draft)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(_write, descriptor, chunk)
                size += len(chunk)
            await asyncio.to_thread(os.fsync, descriptor)
            await asyncio.to_thread(self._put_in_place, draft, name)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return size

    async def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk

    async def append(self, name: str, at: int, data: bytes) -> None:
        await asyncio.to_thread(self._append, self._folder / name, at, data)

    async def seal(self, name: str) -> None:
        pass

    async def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    async def tidy(self, known: Collection[str]) -> None:
        await asyncio.to_thread(self._tidy, known)

    def _tidy(self, known: Collection[str]) -> None:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name not in known and path.is_file() and time.time() - path.stat().st_mtime > NEW:
                log.warning("a file that nobody knows is dropped: %s", path.name)
                path.unlink(missing_ok=True)

    def _open_new(self, draft: Path) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        return os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def _put_in_place(self, draft: Path, name: str) -> None:
        draft.replace(self._folder / name)
        self._sync()

    def _append(self, path: Path, at: int, data: bytes) -> None:
        new = not path.exists()
        if new:
            self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < at:
                raise OSError(f"{path.name} has fewer than the {at} bytes that were written to it")
            os.ftruncate(descriptor, at)
            os.lseek(descriptor, at, os.SEEK_SET)
            _write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            self._sync()

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
