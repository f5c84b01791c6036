"""What the process of a question tells while it works, line by line, so that a crash takes nothing of it along."""

from __future__ import annotations

import json
import os
import time

Row = dict[str, str | int | float | bool | None]
"""Figures of one measurement, by name."""


class Notes:
    """Written to a file descriptor, each at once."""

    def __init__(self, descriptor: int, seconds: float) -> None:
        self._descriptor = descriptor
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until this process is ended."""
        return self._until - time.monotonic()

    def note(self, text: str) -> None:
        """A piece of evidence, as a sentence."""
        self._tell("note", text)

    def row(self, **figures: str | int | float | bool | None) -> None:
        """A line of a table."""
        self._tell("row", figures)

    def crash_means(self, answer: str) -> None:
        """From here on a crash is this answer; an empty one takes that back."""
        self._tell("crash_means", answer)

    def answer(self, answer: str) -> None:
        """The last word."""
        self._tell("answer", answer)

    def _tell(self, kind: str, value: object) -> None:
        data = memoryview(json.dumps({kind: value}).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]
