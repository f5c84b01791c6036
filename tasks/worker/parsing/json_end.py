"""Where a JSON value ends that comes in parts."""

from __future__ import annotations


class JsonEnd:
    """Finds the end of a JSON value that comes in parts. It counts brackets and knows strings; more is not checked."""

    def __init__(self) -> None:
        self._depth = 0
        self._string = False
        self._escaped = False
        self._begun = False

    @property
    def in_text(self) -> bool:
        """Whether what was looked at ends within a string."""
        return self._string

    def find(self, text: str) -> int | None:
        """How much of `text`, which follows what was looked at, belongs to the value; None while it goes on."""
        for at, char in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._string = False
                    if not self._depth:
                        return at + 1
            elif char == '"':
                self._string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                if not self._depth:
                    return at
                self._depth -= 1
                if not self._depth:
                    return at + 1
            elif not self._depth and (char == "," or char.isspace()) and self._begun:
                return at
            self._begun = True
        return None
