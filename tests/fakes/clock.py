"""What stands for the module `time` in a module under test: time passes when a test says so."""

from __future__ import annotations

import threading


class Clock:
    """Its own seconds. Whoever sleeps does so by the machine's."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)
