"""An echo that stands still where a test says, so that what is begun is not over when a slow machine comes to interrupt it.

Copied into a folder as `sitecustomize.py`, this very file is what has the workers of a service do so.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "ECHO_STANDS"
"""Names the file that says after how many tokens of an answer; there is none where it goes on."""


class StandingEcho:
    """The echo of every service that is started with `environment`."""

    def __init__(self, folder: Path) -> None:
        shutil.copy(__file__, folder / "sitecustomize.py")
        self._place = folder / "place"
        self.environment = {"PYTHONPATH": str(folder), VARIABLE: str(self._place)}

    @contextmanager
    def standing(self, tokens: int) -> Iterator[Callable[[int], None]]:
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
    from npu.engines.echo import EchoGeneration

    fitting = EchoGeneration._fitting
    place = Path(os.environ[VARIABLE])

    def may_say(token: int) -> bool:
        """Whether an answer may have it now, counted from its beginning."""
        try:
            return token < int(place.read_text())
        except FileNotFoundError:
            return True

    def standing(self: EchoGeneration, answer: Iterator[int]) -> Iterator[int]:
        """The answer, which goes on when it may, or when it is aborted."""
        for token, byte in enumerate(fitting(self, answer), self._continued()):
            while not may_say(token) and not self._aborted.wait(0.01):
                pass
            yield byte

    EchoGeneration._fitting = standing  # type: ignore[method-assign]
