"""Files that models are to be made of, taken over into the models folder of this machine and held to their digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterable
from contextlib import ExitStack, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final, Protocol

from api.errors import HttpProblem, Problem
from api.storage import sync_folder, to_its_end
from tasks.blobs import blob_path, drop_forgotten

SPARE: Final = 100_000_000
"""Bytes that must stay free on the disk."""


class BlobShelf(Protocol):
    """Files by the digest of their bytes, such as `sha256:…`. Each raises `ValueError` for what is no digest."""

    def has(self, digest: str) -> bool:
        """Whether it was sent, and no model was made of it yet."""

    async def take(self, digest: str, chunks: AsyncIterable[bytes], announced: int) -> None:
        """Keep these bytes, on the disk when this returns; `announced` is how many were promised, 0 when nobody said.
        Raises `HttpProblem`; when it does, or `chunks` raises, nothing is kept."""


class Blobs:
    """In the models folder, where a board of the same machine finds them."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir

    def has(self, digest: str) -> bool:
        place = blob_path(self._models_dir, digest)
        with suppress(FileNotFoundError, BlockingIOError), place.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # nobody drops it in this very moment
            # Whoever hears that it is here does not send it: it stays until they have made their model.
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_nlink > 0
        return False

    async def take(self, digest: str, chunks: AsyncIterable[bytes], announced: int) -> None:
        place = blob_path(self._models_dir, digest)
        draft = place.with_name(f".{place.name}.{token_hex(8)}")
        sha256 = hashlib.sha256()
        try:
            with ExitStack() as opened:
                descriptor = await to_its_end(_open, draft, opened)
                _make_sure_of(announced, descriptor)
                async for chunk in chunks:
                    await to_its_end(_write, descriptor, chunk)
                    sha256.update(chunk)
                if sha256.hexdigest() != place.name:
                    raise HttpProblem(
                        Problem(
                            400,
                            "digest_mismatch",
                            f"What arrived is not what was announced: its SHA-256 is {sha256.hexdigest()}. Send it again.",
                            "digest",
                        )
                    )
                await to_its_end(_put_in_place, descriptor, draft, place)
        except OSError as error:
            raise _refusal(error) from error


def _open(draft: Path, opened: ExitStack) -> int:
    """The draft's descriptor, with a lock that says that somebody is at it. `opened` closes it, and removes what is left."""
    draft.parent.mkdir(parents=True, exist_ok=True)
    drop_forgotten(draft.parents[2])
    while True:
        with ExitStack() as held:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            held.callback(draft.unlink, missing_ok=True)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else whoever clears the folder was quicker than the lock
                opened.enter_context(held.pop_all())
                return descriptor


def _make_sure_of(size: int, descriptor: int) -> None:
    """That so many bytes find room. Raises `HttpProblem`."""
    free = shutil.disk_usage(descriptor).free
    if free < size + SPARE:
        raise HttpProblem(
            Problem(
                507,
                "insufficient_storage",
                f"The file needs {(size + SPARE) / 1e6:,.0f} MB in the models folder, {SPARE / 1e6:.0f} MB to spare among "
                f"them, and {free / 1e6:,.0f} MB are free. Make room, and send it again.",
                close=True,
            )
        )


def _write(descriptor: int, chunk: bytes) -> None:
    _make_sure_of(len(chunk), descriptor)
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def _put_in_place(descriptor: int, draft: Path, place: Path) -> None:
    os.fsync(descriptor)
    draft.replace(place)
    sync_folder(place.parent)


def _refusal(error: OSError) -> HttpProblem:
    status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 503
    return HttpProblem(
        Problem(
            status,
            "insufficient_storage" if status == 507 else "storage_unavailable",
            f"The file cannot be kept in the models folder of this machine: {error.strerror or error}.",
            close=True,
        )
    )
