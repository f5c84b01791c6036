"""Readings of one thing that overlap: what was asked for later is as new or newer, though it may arrive before the other."""

from __future__ import annotations


class Readings:
    """Tells which are to be kept, so that nobody goes back to what was before."""

    def __init__(self) -> None:
        self._begun = self._kept = 0

    def begin(self) -> int:
        """One is asked for now; its number."""
        self._begun += 1
        return self._begun

    def keeps(self, reading: int) -> bool:
        """Whether to keep that one, which has arrived: no later one was kept."""
        self._kept, before = max(self._kept, reading), self._kept
        return reading > before
