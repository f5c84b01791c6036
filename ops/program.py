"""How this program was started, and so how its other commands are typed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

NAME: Final = "rockchipllama"
"""How messages that are not only for this machine call it."""


def program(*, by_name: bool = True) -> str:
    """What to type for it here: its name where the shell finds it by that (who is root for a moment finds others), else its
    path, from this folder where it is below."""
    started = Path(sys.argv[0])
    path = started if started.name == NAME else Path(sys.executable).with_name(NAME)  # a part is started as a module
    if not path.is_file():
        return NAME
    path = path.absolute()
    tidy = Path(os.path.normpath(path))
    if tidy.is_file() and tidy.samefile(path):  # else a link leads elsewhere on the way
        path = tidy
    found = shutil.which(NAME) if by_name else None
    if found is not None and os.path.samefile(found, path):
        return NAME
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def given(**options: object) -> str:
    """What to type behind a command for the same service, or folder, as with these options: those that were given."""
    words = [str(word) for name, value in options.items() if value is not None for word in (_option(name), value)]
    return f" {shlex.join(words)}" if words else ""


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def elsewhere() -> str:
    """The same on another machine, whose folders have other names."""
    typed = program()
    return NAME if Path(typed).is_absolute() else typed


def as_typed(text: str) -> str:
    """A text with its commands, `rockchipllama …`, as they are typed here."""
    return text.replace(f"`{NAME} ", f"`{program()} ")
