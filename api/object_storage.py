"""Files in an object store, by its URL: `s3://bucket/prefix`, `gs://`, `az://`, or `file://` for a share that several machines
mount. What is appended lies in parts until the file is whole, since an object cannot grow.

The store's client is used from threads: its own asynchronous calls now and then abort the process when that ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from api.storage import CHUNK, NEW, Check
from tasks.files import is_file_id

log = logging.getLogger("rockchipllama.api")

Result = TypeVar("Result")

HELD = 2.0
"""Seconds between two questions whether a file that is put together is still this process'."""
AT_ONCE = 1000
"""Objects that are deleted by one request."""
_PARTS = ".parts/"
_DIGITS = 15


class ObjectStorage:
    """Files as objects of one store."""

    def __init__(self, url: str) -> None:
        """Credentials come from the environment, as the store's own tools take them. Raises `OSError` when the URL is none."""
        with _as_os_error():
            self._store = from_url(url)
        self._ends: dict[str, int] = {}
        """How far this process has appended to files, by their names: nothing lies behind that."""

    async def create(self, name: str, chunks: AsyncIterable[bytes]) -> int:
        loop, source = asyncio.get_running_loop(), aiter(chunks)
        size, given_up = 0, False

        async def following() -> bytes | None:
            if given_up:
                raise OSError(f"{name} is given up")
            return await anext(source, None)

        def pieces() -> Iterator[bytes]:
            nonlocal size
            while (chunk := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
                size += len(chunk)
                yield chunk

        # What raises here ends the upload there as well; nothing of it is left in the store, to be paid for by the month.
        put = partial(obstore.put, self._store, name, pieces(), max_concurrency=2)
        # A thread of its own: it waits for the client, and those that all share are few.
        thread = ThreadPoolExecutor(1, "upload")
        try:
            with _as_os_error():
                await loop.run_in_executor(thread, put)
        finally:
            given_up = True
            thread.shutdown(wait=False)
        return size

    async def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        for path, size in await self._objects(name):
            if start < size:
                async for chunk in self._read(path, start):
                    yield chunk
            start = max(0, start - size)

    async def append(self, name: str, at: int, data: bytes, mine: Check) -> None:
        await mine()
        if self._ends.pop(name, None) != at:
            await self._cut(name, at)
        # What another process has put there meanwhile is not written over: then this one is not to write any more.
        put = partial(obstore.put, self._store, f"{name}{_PARTS}{at:0{_DIGITS}}", data, mode="create")
        await _in_thread(put)
        self._ends[name] = at + len(data)

    async def seal(self, name: str, size: int, mine: Check) -> None:
        await mine()
        self._ends.pop(name, None)
        if not await self._is_whole(name):
            await self._cut(name, size)
            await self.create(name, self._held(name, mine))
        await self._delete([path for path, _ in await self._parts(name)])

    async def _held(self, name: str, mine: Check) -> AsyncIterator[bytes]:
        """Its bytes, and meanwhile it stays this process': of a night there may be ten thousand parts to be read."""
        now = asyncio.get_running_loop().time
        checked = now()
        async for chunk in self.read(name):
            if now() - checked > HELD:
                await mine()
                checked = now()
            yield chunk

    async def _cut(self, name: str, size: int) -> None:
        """Drop what follows the first `size` bytes of the parts. Raises `OSError` when there are fewer."""
        parts = await self._parts(name)
        await self._delete([path for path, _ in parts if _place(path) >= size])
        good = sum(length for path, length in parts if _place(path) < size)
        if good != size:
            raise OSError(f"{name} has {good} bytes, and {size} were written to it")

    async def delete(self, name: str) -> None:
        for path in [name] if await self._is_whole(name) else []:
            await _in_thread(obstore.delete, self._store, path)
        await self._delete([path for path, _ in await self._parts(name)])

    async def _delete(self, paths: list[str]) -> None:
        for first in range(0, len(paths), AT_ONCE):
            await _in_thread(obstore.delete, self._store, paths[first : first + AT_ONCE])

    async def tidy(self, known: Collection[str]) -> None:
        for path, _, changed in await _in_thread(self._listed, ""):
            name = path.split(_PARTS)[0]
            if is_file_id(name) and name not in known and (datetime.now(UTC) - changed).total_seconds() > NEW:
                log.warning("an object that nobody knows is dropped: %s", path)
                await _in_thread(obstore.delete, self._store, path)

    async def _objects(self, name: str) -> list[tuple[str, int]]:
        """The objects that make up a file, in order, and their sizes. Raises `FileNotFoundError`."""
        parts = await self._parts(name)
        if parts and not await self._is_whole(name):
            return parts
        found: Any = await _in_thread(obstore.head, self._store, name)
        return [(name, found["size"])]

    async def _is_whole(self, name: str) -> bool:
        try:
            await _in_thread(obstore.head, self._store, name)
        except FileNotFoundError:
            return False
        return True

    async def _parts(self, name: str) -> list[tuple[str, int]]:
        found = await _in_thread(self._listed, name + _PARTS.rstrip("/"))
        return sorted((path, size) for path, size, _ in found)

    def _listed(self, prefix: str) -> list[tuple[str, int, datetime]]:
        pages = obstore.list(self._store, prefix=prefix or None)
        return [(each["path"], each["size"], each["last_modified"]) for page in pages for each in page]

    async def _read(self, path: str, start: int) -> AsyncIterator[bytes]:
        found: Any = await _in_thread(lambda: obstore.get(self._store, path, options={"range": {"offset": start}}))
        chunks = iter(found.stream(min_chunk_size=CHUNK))
        while (chunk := await _in_thread(lambda: next(chunks, None))) is not None:
            yield bytes(chunk)


def _place(part: str) -> int:
    return int(part[-_DIGITS:])


async def _in_thread(call: Callable[..., Result], *arguments: Any) -> Result:
    with _as_os_error():
        return await asyncio.to_thread(call, *arguments)


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        # The first line says it; what follows is for those who mend the client.
        raise OSError(str(error).splitlines()[0]) from error
