"""Answers that stand still where a test says, so that what is begun is not over when a slow machine comes to interrupt it.

Copied into a folder as `sitecustomize.py`, this very file is what has the workers of a service do so, whatever their engine.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "ANSWERS_STAND"
"""Names the file that says after how many tokens; there is none where they go on."""


class Standing:
    """The answers of every service that is started with `environment`."""

    def __init__(self, folder: Path) -> None:
        shutil.copy(__file__, folder / "sitecustomize.py")
        self._place = folder / "place"
        self.environment = {"PYTHONPATH": str(folder), VARIABLE: str(self._place)}

    @contextmanager
    def at(self, tokens: int) -> Iterator[Callable[[int], None]]:
        """Meanwhile no answer has more tokens than that. What it gives moves the place on."""
        self._stand(tokens)
        try:
            yield self._stand
        finally:
            self._place.unlink()

    def _stand(self, tokens: int) -> None:
        draft = self._place.with_suffix(".draft")
        draft.write_text(str(tokens))
        draft.replace(self._place)


if __name__ == "sitecustomize" and "worker" in sys.orig_argv:
    from tasks.worker.generate import _Answer

    begin = _Answer._generation
    place = Path(os.environ[VARIABLE])

    def may_say(token: int) -> bool:
        """Whether an answer may have it now, counted from its beginning."""
        try:
            return token < int(place.read_text())
        except FileNotFoundError:
            return True

    class Run:
        """One run of an engine, whose tokens come when they may, or when it is aborted."""

        def __init__(self, run: Any, said: int) -> None:
            self._run, self._said = run, said
            self._aborted = threading.Event()

        def __iter__(self) -> Iterator[Any]:
            for token, piece in enumerate(self._run, self._said):
                while not may_say(token) and not self._aborted.wait(0.01):
                    pass
                yield piece

        def abort(self) -> None:
            """As the engine's own."""
            self._aborted.set()
            self._run.abort()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._run, name)

    def standing(self: _Answer, *parts: Any) -> Any:
        """The engine's run, which stands still."""
        return Run(begin(self, *parts), len(self._said))

    _Answer._generation = standing  # type: ignore[method-assign]
