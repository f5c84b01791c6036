"""Work in order within a lane, lanes beside one another: whoever is slow holds up only those behind it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable

log = logging.getLogger("rockchipllama.board")


class Lanes:
    """Each lane has one thread, which ends when nothing waits; a lane is made by the first work for it."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, lane: Hashable, work: Callable[[], None], limit: int) -> bool:
        """Do `work` after what waits in the lane; false, and it is not done, when `limit` wait there already."""
        with self._lock:
            waiting = self._waiting.get(lane)
            if waiting is not None:
                if len(waiting) >= limit:
                    return False
                waiting.append(work)
                return True
            self._waiting[lane] = deque([work])
            try:
                threading.Thread(target=self._drain, args=(lane,), name=f"lane {lane}", daemon=True).start()
            except RuntimeError:  # no more threads here, and nobody has put anything behind this meanwhile
                del self._waiting[lane]
                return False
        return True

    def close(self) -> None:
        """Begin nothing more. What is being done goes on. Twice is safe."""
        with self._lock:
            self._closed = True

    def _drain(self, lane: Hashable) -> None:
        while True:
            with self._lock:
                waiting = self._waiting[lane]
                if self._closed or not waiting:
                    del self._waiting[lane]
                    return
                work = waiting.popleft()
            try:
                work()
            except Exception:
                log.exception("work of the lane %s failed", lane)
