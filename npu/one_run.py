"""What the runs of every engine have in common: each is iterated once, and tells its end and its cost afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from npu.engine import End, Piece, Stats


class OneRun(ABC):
    """The part of `npu.engine.Generation` that does not depend on what runs. `_end` and `_stats` are set at the end."""

    def __init__(self) -> None:
        self._begun = False
        self._end: End | None = None
        self._stats: Stats | None = None

    def __iter__(self) -> Iterator[Piece]:
        if self._begun:
            raise RuntimeError("A generation is iterated once.")
        self._begun = True
        return self._run()

    @abstractmethod
    def _run(self) -> Iterator[Piece]:
        """Each piece as it is made."""

    @property
    def end(self) -> End:
        """Why it ended. Raises `RuntimeError` before that."""
        if self._end is None:
            raise RuntimeError("The generation has not ended yet.")
        return self._end

    @property
    def stats(self) -> Stats:
        """What it cost. Raises `RuntimeError` before it ended."""
        if self._stats is None:
            raise RuntimeError("The generation has not ended yet.")
        return self._stats
