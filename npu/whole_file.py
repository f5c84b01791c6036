"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file: whatever happens meanwhile, what lies at `path` is the old one or the new one. Raises `OSError`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        put_in_place(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def put_in_place(draft: Path, path: Path) -> None:
    """Give a file that was written beside `path` its name, once its bytes are on the disk. Raises `OSError`.

    Without the first step a power cut may leave the name on an empty file; without the last, no name at all.
    """
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def put_folder_in_place(draft: Path, folder: Path) -> None:
    """Give a whole folder its name; what had it is removed. Whoever has files of that open keeps them. Raises `OSError`.

    The two lie on one disk, and nobody looks into the folder that `draft` lies in.
    """
    sync(draft)
    old = draft.with_name(f"{draft.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Return once a file's bytes, or a folder's names, are on the disk. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def set_aside(path: Path) -> Path:
    """Give a damaged file or folder another name, which is returned, and which says since when. Raises `OSError`."""
    aside = damaged_name(path)
    path.rename(aside)
    sync(aside.parent)
    return aside


def damaged_name(path: Path) -> Path:
    """A free name beside `path`, by which what is damaged of it is kept for whoever wants to look."""
    stem = f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S}"
    names = (path.with_name(stem if count == 1 else f"{stem}-{count}") for count in range(1, 1000))
    return next(name for name in names if not name.exists())
