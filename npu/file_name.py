"""Names of files as text: Linux lets them be any bytes, and what is told of them goes into JSON, logs and terminals."""

from __future__ import annotations

import os


def is_text(name: str) -> bool:
    """Whether a name that the system gave is UTF-8, and so can be told and asked for."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def as_text(name: str) -> str:
    """The name, or a sentence with one, with `\\xe9` for each byte that is not UTF-8."""
    return name if is_text(name) else os.fsencode(name).decode("utf-8", "backslashreplace")
