"""Lines for people, broken between words."""

from __future__ import annotations

import shutil
import sys
import textwrap


def columns() -> int | None:
    """How wide the terminal is; None where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fold(line: str, indent: int) -> str:
    """As wide as the terminal, what follows indented by so many spaces; whole where there is none, for programs."""
    width = columns()
    if width is None:
        return line
    ahead = " " * min(indent, width // 4)
    return textwrap.fill(line, width, subsequent_indent=ahead, break_long_words=False, break_on_hyphens=False)
