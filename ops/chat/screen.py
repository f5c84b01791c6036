"""An answer on the screen, or in a pipe, as it comes."""

from __future__ import annotations

import os
import sys

from ops.chat.answer import Piece
from ops.fold import fold
from ops.program import as_typed

_HARMLESS = str.maketrans({code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"})
"""Without what terminals obey: an answer may be anything."""


class Screen:
    """Text goes to standard output. Thoughts go to standard error, dim, and only where that is a terminal."""

    def __init__(self) -> None:
        self._plain = not sys.stdout.isatty()
        self._thoughts = sys.stderr.isatty()
        self._thinking = False
        self._open = False
        one_file = _one_file()
        self._shared = one_file or (not self._plain and self._thoughts)
        """Both stand on one screen, or in one file."""
        self._kept = one_file and not self._thoughts
        """Notes are kept with the answer, in which they have no place."""

    def show(self, piece: Piece) -> None:
        """One more piece."""
        if piece.thought:
            if self._thoughts:
                self._thinking = True
                print(f"\x1b[2m{piece.text.translate(_HARMLESS)}\x1b[0m", end="", file=sys.stderr, flush=True)
            return
        if self._thinking:
            print("\n", file=sys.stderr, flush=True)
            self._thinking = False
        print(piece.text if self._plain else piece.text.translate(_HARMLESS), end="", flush=True)
        self._open = not piece.text.endswith("\n")

    def end(self) -> None:
        """Begin a new line, unless there is one."""
        if self._thinking:
            print(file=sys.stderr, flush=True)
        if self._open:
            print(flush=True)
        self._thinking = self._open = False

    def new_line(self) -> None:
        """The same for what goes to standard error, so that a pipe has the answer alone."""
        if self._thinking or (self._open and self._shared):
            print(file=sys.stderr, flush=True)
            self._thinking = self._open = False

    def note(self, sentence: str) -> None:
        """Something that is no part of the answer, in the middle of it; left out there where one file gets both."""
        if self._kept and self._open:
            return
        self.new_line()
        note(sentence)


def _one_file() -> bool:
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # one of them is closed, or no file
        return False


def note(text: str, indent: int = 0) -> None:
    """Something that is no part of an answer; what does not fit into a line goes on `indent` columns from the left."""
    for line in as_typed(text).split("\n"):
        print(fold(line, indent, sys.stderr), file=sys.stderr, flush=True)
