"""Files that Ollama's clients send for models to be made of, as they lie on the disk."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api import blobs
from api.blobs import Blobs
from api.errors import HttpProblem
from tasks.blobs import FOLDER, KEPT, blob_path, drop_forgotten
from tasks.board.leftovers import prune
from tests.stack import LIMIT

pytestmark = pytest.mark.anyio


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def take(kept: Blobs, data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    await kept.take(digest_of(data), chunks(), len(data))


async def test_what_nobody_made_a_model_of_goes_after_a_day_unless_it_is_asked_for(tmp_path: Path) -> None:
    """Whoever hears that a file is here does not send it again, so it has a day from then on."""
    kept = Blobs(tmp_path)
    files = [b"asked for", b"forgotten"]
    for data in files:
        await take(kept, data)
    for data in files:
        place = blob_path(tmp_path, digest_of(data))
        os.utime(place, (time.time() - KEPT - 60,) * 2)
    assert kept.has(digest_of(files[0]))
    await take(kept, b"another")
    assert [blob_path(tmp_path, digest_of(data)).exists() for data in files] == [True, False]


async def test_nobody_hears_of_a_file_that_is_being_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would not send it, and no model could be made of it."""
    kept, data, answers = Blobs(tmp_path), b"old", []
    await take(kept, data)
    place = blob_path(tmp_path, digest_of(data))
    os.utime(place, (time.time() - KEPT - 60,) * 2)
    unlink = Path.unlink

    def asked_right_before(path: Path, missing_ok: bool = False) -> None:
        answers.append(kept.has(digest_of(data)))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", asked_right_before)
    drop_forgotten(tmp_path)
    assert answers == [False] and not place.exists()


async def test_what_cannot_be_locked_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another machine may refuse locks: neither a draft nor an open file stays."""

    def refused(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    held = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HttpProblem, match="cannot be kept"):
        await take(Blobs(tmp_path), b"data")
    assert list((tmp_path / FOLDER).iterdir()) == [] and len(os.listdir("/proc/self/fd")) <= held


async def test_an_upload_in_progress_is_nobodys_leftover(tmp_path: Path) -> None:
    """Whoever clears the folder meanwhile leaves it alone; and what they removed before it said so is begun anew."""
    kept, data, held = Blobs(tmp_path), b"a" * 9, []

    async def chunks() -> AsyncIterator[bytes]:
        held.extend(prune(tmp_path, 0))
        yield data

    await kept.take(digest_of(data), chunks(), len(data))
    assert held == [] and kept.has(digest_of(data))


async def test_a_draft_that_was_cleared_before_it_was_held_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making it and saying that somebody is at it lies a moment."""
    kept, lock, cleared = Blobs(tmp_path), fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not cleared:
            monkeypatch.setattr(fcntl, "flock", lock)
            cleared.extend(prune(tmp_path, 0))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    await take(kept, b"data")
    assert len(cleared) == 1 and kept.has(digest_of(b"data"))


async def test_an_upload_that_is_cancelled_closes_nothing_that_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the server stops, twice over: it goes when its thread has ended, and leaves nothing behind."""
    write, writing, go, wrong = os.write, threading.Event(), threading.Event(), []

    def slow(descriptor: int, data: memoryview) -> int:
        writing.set()
        assert go.wait(LIMIT)
        try:
            return write(descriptor, data)
        except OSError as error:
            wrong.append(error)
            raise

    monkeypatch.setattr(blobs.os, "write", slow)
    uploading = asyncio.create_task(take(Blobs(tmp_path), b"data"))
    await asyncio.to_thread(writing.wait, LIMIT)
    for _ in range(2):
        uploading.cancel()
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    await asyncio.get_running_loop().shutdown_default_executor()
    assert wrong == [] and list((tmp_path / FOLDER).iterdir()) == []


async def test_a_files_name_is_on_the_disk_as_its_bytes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut right after the answer loses neither."""
    steps: list[str] = []
    replace, sync = Path.replace, os.fsync

    def renamed(draft: Path, place: Path) -> Path:
        steps.append("renamed")
        return replace(draft, place)

    def synced(descriptor: int) -> None:
        steps.append("the folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "the file")
        sync(descriptor)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    await take(Blobs(tmp_path), b"data")
    assert steps == ["the file", "renamed", "the folder"]


@pytest.mark.parametrize(
    "digest", ["sha256:ab", "../" * 9 + "etc/passwd", "sha256:" + "../" * 21 + "x", "sha256:" + "A" * 64, ""]
)
def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    """A path with slashes in it does not even reach the route, so this is asked here."""
    with pytest.raises(ValueError, match="hexadecimal"):
        blob_path(tmp_path, digest)
