"""How fast a batch goes, and how long it will take."""

from __future__ import annotations

from collections import deque
from typing import Any

LATELY = 60.0
"""Seconds whose progress is the pace."""


class Pace:
    """How fast it goes: by what was done and said in the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()
        self._left = 0

    def look(self, batch: dict[str, Any], now: float) -> None:
        """See the batch as it is at this second."""
        counts = batch["request_counts"]
        done = counts["completed"] + counts["failed"]
        self._left = counts["total"] - done
        self._seen.append((now, done, batch["usage"]["output_tokens"]))
        while len(self._seen) > 2 and now - self._seen[0][0] > LATELY:
            self._seen.popleft()

    @property
    def tokens(self) -> float | None:
        """Said per second; None while nobody can tell."""
        return self._rate(2)

    @property
    def left(self) -> float | None:
        """Seconds until it is done, at this pace; None while nobody can tell."""
        rate = self._rate(1)
        return self._left / rate if rate else None

    def _rate(self, part: int) -> float | None:
        first, last = self._seen[0], self._seen[-1]
        return (last[part] - first[part]) / (last[0] - first[0]) if last[0] > first[0] else None


def duration(seconds: float) -> str:
    """Such as 12 s, 3:07 or 5:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"
