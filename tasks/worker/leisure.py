"""The time in which a worker has nothing to do: its engine keeps the conversation in its cache for whoever displaces it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from npu.errors import EngineFailed
from tasks.worker.slot import Slot

log = logging.getLogger("rockchipllama.worker")

QUIET = 1.0
"""Seconds without a job after which it begins: what programs ask next, they ask sooner, and need not wait for it."""
LONGEST = 60.0
"""Seconds that parking may take before the engine counts as stuck."""


class Leisure:
    """Of one worker. `begin` and `end` may be called from any thread."""

    def __init__(self, slot: Slot, broke: Callable[[], None]) -> None:
        """`broke` is called once the engine was closed because it broke."""
        self._slot = slot
        self._broke = broke
        self._parking_since: float | None = None
        """In monotonic seconds; None while nothing is parked."""
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        """Held while the engine is used."""

    def begin(self) -> None:
        """The worker has nothing to do from now on."""
        self.end()
        if self._slot.parks:
            with self._lock:
                self._park_in(QUIET)

    def end(self) -> None:
        """It has: wait until the engine is let go of, and leave it alone. Twice is safe."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    @property
    def stuck(self) -> bool:
        """Whether the engine has been at it for too long."""
        since = self._parking_since
        return since is not None and time.monotonic() - since > LONGEST

    def _park_in(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._park)
        self._timer.daemon = True
        self._timer.start()

    def _park(self) -> None:
        with self._lock:
            if self._timer is not threading.current_thread():
                return  # it was ended in this very moment
            self._parking_since = time.monotonic()
            try:
                again = self._slot.park()
                if again:
                    self._park_in(again)
            except EngineFailed as error:
                log.warning("the engine broke while a conversation was parked: %s", error)
                self._slot.close()
                self._broke()
            finally:
                self._parking_since = None
