"""Files that Ollama's clients send for models to be made of, as they lie on the disk."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api import blobs
from api.blobs import Blobs
from tasks.blobs import blob_path

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
        os.utime(place, (time.time() - blobs.KEPT - 60,) * 2)
    assert kept.has(digest_of(files[0]))
    await take(kept, b"another")
    assert [blob_path(tmp_path, digest_of(data)).exists() for data in files] == [True, False]


@pytest.mark.parametrize(
    "digest", ["sha256:ab", "../" * 9 + "etc/passwd", "sha256:" + "../" * 21 + "x", "sha256:" + "A" * 64, ""]
)
def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    """A path with slashes in it does not even reach the route, so this is asked here."""
    with pytest.raises(ValueError, match="hexadecimal"):
        blob_path(tmp_path, digest)
