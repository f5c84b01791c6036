"""Lines for people, broken between words."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import TextIO

_COMMAND = re.compile(r"`[^`]+`")
_UNBROKEN = "\xa0"


def columns(stream: TextIO | None = None) -> int | None:
    """How wide the terminal is that `stream` goes to, standard output unless another is named; None where that is none."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else None


def fold(line: str, indent: int, stream: TextIO | None = None) -> str:
    """As wide as the terminal, what follows indented by so many spaces; whole where there is none, for programs. What stands in
    backticks is there to be copied, and stays on one line."""
    width = columns(stream)
    if width is None:
        return line
    ahead = " " * min(indent, width // 4)
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", _UNBROKEN), line)
    folded = textwrap.fill(whole, width, subsequent_indent=ahead, break_long_words=False, break_on_hyphens=False)
    return folded.replace(_UNBROKEN, " ")
