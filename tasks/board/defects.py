"""What nobody foresaw: told with its traceback, but not again and again by a loop that goes on regardless."""

from __future__ import annotations

import logging
import time
import traceback

AGAIN = 600.0
"""Seconds after which the same defect is told again."""


class Defects:
    """Remembers which defects were told. A kind is a class of exceptions that came the same way."""

    def __init__(self, log: logging.Logger, who: str) -> None:
        self._log = log
        self._who = who
        self._told: dict[tuple[object, ...], float] = {}

    def met(self, error: Exception) -> None:
        """Log it, unless its kind was told lately."""
        kind = (type(error), *((frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)))
        now = time.monotonic()
        if now - self._told.get(kind, -AGAIN) < AGAIN:
            return
        self._told[kind] = now
        self._log.error("%s met a defect, and goes on: %s", self._who, error, exc_info=error)
