"""Which models a board has, changed by command: pulled, made from others, copied, deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from tasks import commands
from tasks.board.assembling import assemble
from tasks.board.pulls import Pulls
from tasks.board.shelving import copy, create, remove


class Inventory:
    """`look` announces what has changed, and returns when that is done. Usable from any thread."""

    def __init__(self, models_dir: Path, pulls: Pulls, look: Callable[[], None]) -> None:
        self._models_dir = models_dir
        self._pulls = pulls
        self._look = look
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the pulls that are under way. Twice is safe."""
        self._pulls.close()

    def obey(self, command: commands.Shelving) -> object:
        """Do what the command says; its result. Raises `CommandFailed` and `OSError`."""
        match command:
            case commands.Pull(model=model):
                return self._pulls.start(model)
            case commands.PullState(pull=pull):
                return self._pulls.state(pull)
        with self._lock:
            match command:
                case commands.Delete(model=model):
                    remove(self._models_dir, model)
                case commands.Copy(model=model, to=to):
                    copy(self._models_dir, model, to)
                case commands.Create() if command.files:
                    assemble(self._models_dir, command)
                case commands.Create():
                    create(self._models_dir, command)
        self._look()
        return None
