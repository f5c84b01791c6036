"""Files that clients send for a model to be made of: where they lie until it is, by the SHA-256 of their bytes."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

log = logging.getLogger("rockchipllama.blobs")

FOLDER: Final = ".partial/.blobs"
"""In the models folder, so that a model is made of them without a copy. No catalogue looks there, and no model is called so."""
KEPT: Final = 24 * 3600.0
"""Seconds for which a file waits for a model to be made of it."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def is_digest(text: str) -> bool:
    """Whether it is `sha256:` and 64 hexadecimal digits; `sha256-` is how Ollama's clients write it in paths."""
    return _DIGEST.fullmatch(text) is not None


def blob_path(models_dir: Path, digest: str) -> Path:
    """Where the file of that digest lies, when it was sent. Raises `ValueError` for what is no digest."""
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise ValueError(f"'{digest[:100]}' is not `sha256:` and 64 hexadecimal digits.")
    return models_dir / FOLDER / found[1]


def drop_forgotten(models_dir: Path) -> None:
    """Remove what no model was made of in its time, and what uploads left whose process was killed. Raises `OSError`."""
    folder = models_dir / FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        # One that is taken meanwhile is gone, and one that somebody is at is locked; NFS locks only what may be written.
        with suppress(FileNotFoundError, BlockingIOError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > KEPT:
                log.warning("a file that no model was made of is dropped: %s", path.name)
                path.unlink()
