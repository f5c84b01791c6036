"""What a pull is done with: the models folder, what the machine can run, the hub and who asks it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.board.pull.download import opener
from tasks.board.pull.hub import Hub
from tasks.board.pull.index import PATH
from tasks.board.pull.machine import Machine, read_machine
from tasks.board.pull.neighbours import Neighbours
from tasks.board.settings import BoardSettings
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where models are put, and how they are come by."""

    models_dir: Path
    machine: Callable[[], Machine]
    """Looked at with each pull: a runtime may have been fetched meanwhile."""
    hub: Hub
    index: Path = PATH
    neighbours: Neighbours | None = None
    """The other boards, which are asked first; None where there is no service, or they are not to be asked."""
    wait: Callable[[float], object] = time.sleep
    pause: float = 1.0
    """Seconds to wait after the first attempt that brought nothing."""


def shelf_of(
    settings: TaskSettings,
    board: BoardSettings,
    soc: str | None = None,
    *,
    wait: Callable[[float], object] = time.sleep,
    neighbours: Neighbours | None = None,
) -> Shelf:
    """The shelf of this machine. With `soc`, models for that chip are fetched instead of those for its own."""
    token = board.hf_token.get_secret_value() if board.hf_token is not None else None
    return Shelf(
        settings.models_dir,
        partial(read_machine, setup_of(settings), soc),
        Hub(opener(), board.hf_endpoint, token, wait=wait),
        neighbours=neighbours if board.neighbours else None,
        wait=wait,
    )
