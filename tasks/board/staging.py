"""Where models are put together and taken apart: folders beside the models, on the same disk, which no catalogue looks into."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

log = logging.getLogger("rockchipllama.board")

PARTIAL: Final = ".partial"
LOCK: Final = ".stages.lock"
"""Held by whoever has a stage, so that one whose process was killed can be told."""
_STAGE: Final = "~"
"""Ends their names, and is in no model's: what a pull keeps is never taken for one."""
_OLD: Final = f"{_STAGE}.old"
"""Ends the name of a model whose place another takes, while it does."""


@contextmanager
def stage(models_dir: Path, model_id: str) -> Iterator[Path]:
    """An empty folder in which a model is put together, or is until it is gone; whatever is still there afterwards is removed.
    Waits for others that have one. Raises `OSError`."""
    folder = models_dir / PARTIAL
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mine = folder / f".{model_id}{_STAGE}"
        shutil.rmtree(mine, ignore_errors=True)
        mine.mkdir()
        try:
            yield mine
        finally:
            shutil.rmtree(mine, ignore_errors=True)


def is_stage(path: Path) -> bool:
    """Whether something in `PARTIAL` is one."""
    return path.name.endswith((_STAGE, _OLD))


def is_last(path: Path) -> bool:
    """Whether something in `PARTIAL` is all there is of a model whose place another was to take; `clear` puts it back."""
    return path.name.endswith(_OLD) and not _home(path).exists()


def _home(path: Path) -> Path:
    return path.parent.parent / path.name.removeprefix(".").removesuffix(_OLD)


def clear(models_dir: Path) -> None:
    """Remove the stages of processes that were killed, and put back a model that one of them was to take the place of. Nothing
    is done while anybody has a stage. Raises `OSError`."""
    folder = models_dir / PARTIAL
    if not (folder / LOCK).is_file():
        return
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for left in filter(is_stage, sorted(folder.iterdir())):
            if is_last(left):
                log.warning("the model %s is put back: what was to take its place came to nothing", _home(left).name)
                left.rename(_home(left))
            else:
                log.warning("what is left of a model that was being made or removed is cleared: %s", left)
                shutil.rmtree(left)
