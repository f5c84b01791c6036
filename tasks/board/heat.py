"""Whether heat slows this board down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from npu.hardware import Board

log = logging.getLogger("rockchipllama.board")

MARGIN = 10.0
"""Degrees Celsius below its limit to which each sensor has to come before the board counts as cooled."""
HOT = (
    "Heat slows its board down at the moment: answers take longer, and batches rest between items until it has cooled."
)
"""What those are told who look at a model there."""
CALM = 60.0
"""Seconds for which nothing may be too hot, and no clock held down, before it does."""


class Heat:
    """What was made of the looks at one board, by one thread.

    A board is slowed down as soon as the kernel says so, and has cooled when all has been well for a while: a kernel lets
    clocks go and holds them down again within seconds, and nobody should follow that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._well_since: float | None = None
        """Since when nothing has been too hot; None while something is."""
        self.hot = False

    def look(self, board: Board) -> bool | None:
        """Whether heat slows the board down, of what it tells now; None where it tells nothing of that."""
        limits = [(zone, zone.limit) for zone in board.zones if zone.limit is not None]
        if not limits and board.throttled is None:
            return None
        warm = any(zone.celsius > limit - MARGIN for zone, limit in limits)
        # A clock that is capped on a cool board was capped by who runs it.
        slow = bool(board.throttled) or (warm and any(clock.capped for clock in board.clocks))
        now_hot = slow or any(zone.celsius >= limit for zone, limit in limits)
        now = self._clock()
        if now_hot and not self.hot:
            log.warning(
                "this board is hot (%.0f °C) and slowed down: batches rest between items until it has cooled, chats do not",
                max((zone.celsius for zone in board.zones), default=0.0),
            )
        self.hot = self.hot or now_hot
        if now_hot or warm:
            self._well_since = None
        elif self._well_since is None:
            self._well_since = now
        if self.hot and self._well_since is not None and now - self._well_since >= CALM:
            log.info("this board has cooled: batches go on as before")
            self.hot = False
        return self.hot
