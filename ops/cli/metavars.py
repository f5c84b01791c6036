"""What the values of commands are called in their help: MODEL, NUMBER, TEXT."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def name_values(command: Any) -> None:
    """Give each value below `command` that has no name yet one in capitals, by which messages and the documentation call it."""
    for param in command.params:
        kind = param.type_descriptor
        if param.metavar is not None or kind.is_choice:
            continue
        if param.param_type_name == "argument":
            param.metavar = param.name.upper()
        elif not param.is_flag:
            param.metavar = _kind_of(kind)
    for each in getattr(command, "commands", {}).values():
        name_values(each)


def _kind_of(kind: Any) -> str:
    if kind.annotation in (int, float):
        return "NUMBER"
    return "FILE" if kind.is_path or kind.annotation is Path else "TEXT"
