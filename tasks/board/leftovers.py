"""What pulls, uploads and removals that broke off left in the models folder, and nobody will come back for."""

from __future__ import annotations

import fcntl
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tasks.blobs import FOLDER as BLOBS
from tasks.board.staging import LOCK as STAGES
from tasks.board.staging import PARTIAL, is_last, is_stage

_LOCK = ".lock"


class Leftover(NamedTuple):
    """A file or folder, its bytes, and the seconds since it was last written to."""

    path: Path
    size: int
    age: float


def leftovers(models_dir: Path, older: float) -> list[Leftover]:
    """Those that were not written to for `older` seconds, and that nobody is at. Raises `OSError`."""
    found = []
    for path in _entries(models_dir):
        with _held(path) as free, suppress(FileNotFoundError):  # whoever was at it may have brought it to its end
            if free and (each := _looked_at(path)).age >= older:
                found.append(each)
    return sorted(found)


def prune(models_dir: Path, older: float) -> list[Leftover]:
    """Remove them; what was removed. Raises `OSError`."""
    gone = []
    for each in leftovers(models_dir, older):
        # Looked at once more and held until it is gone, for a pull may have gone on there meanwhile.
        with _held(each.path) as free:
            if not free or not each.path.exists() or _looked_at(each.path).age < older:
                continue
            if each.path.is_dir():
                shutil.rmtree(each.path)
            else:
                each.path.unlink(missing_ok=True)
            gone.append(each)
    return gone


def _entries(models_dir: Path) -> Iterator[Path]:
    for folder in (models_dir / PARTIAL, models_dir / BLOBS):
        if folder.is_dir():
            # A lock stays: whoever waits for it holds that very file.
            yield from (
                path
                for path in folder.iterdir()
                if path.suffix != _LOCK and path != models_dir / BLOBS and not is_last(path)
            )


def _looked_at(path: Path) -> Leftover:
    states = [each.lstat() for each in (path, *path.rglob("*"))]
    size = sum(state.st_size for state in states if stat.S_ISREG(state.st_mode))
    return Leftover(path, size, time.time() - max(state.st_mtime for state in states))


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether nobody is at it, and nobody comes to it within the block."""
    with ExitStack() as files:
        for lock in _locks(path):
            try:
                fcntl.flock(files.enter_context(lock.open("rb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except BlockingIOError:
                yield False
                return
        yield True


def _locks(path: Path) -> Iterator[Path]:
    """What whoever is at it holds: an upload the file itself; a pull, or a fetch of the demo model, the lock of the model, whose
    name all of its files begin with."""
    if path.parent.name == Path(BLOBS).name:
        yield path
    elif is_stage(path):
        yield path.with_name(STAGES)
    else:
        words = path.name.split(".")
        yield from (path.with_name(".".join(words[:count]) + _LOCK) for count in range(1, len(words) + 1))
