"""Looks at the boards while something is measured: heat that slows them down, memory that goes to swap."""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from ops.service import Service, ServiceError

LOOK = 1.0
"""Seconds between two looks; boards tell of themselves every two."""
SLOW_LOOKS = 0.1
"""The share of looks in which the NPU may run below its fastest clock."""
SWAPPED = 16 << 20
"""Bytes that may go to swap and back, as they do on a machine that has time to tidy up."""


class Conditions(msgspec.Struct, kw_only=True):
    """What was seen of one board meanwhile. Null is what it does not tell."""

    board: str
    soc: str | None = None
    machine: str | None = None
    driver: str | None = None
    version: str | None = None
    looks: int = 0
    throttled: list[str] | None = None
    """What heat slowed down at some moment, by the kernel's names."""
    clock_hertz: int | None = None
    """The slowest clock of the NPU that was seen."""
    highest_clock_hertz: int | None = None
    slow_looks: int = 0
    """Looks in which the clock was below the highest."""
    hottest: float | None = None
    """Degrees Celsius."""
    swapped_bytes: int | None = None
    """What went to swap and back between the first look and the last."""
    least_available_bytes: int | None = None
    """The least memory that was left."""

    def faults(self) -> list[str]:
        """Why what was measured then does not count, a sentence each."""
        found = []
        if self.throttled:
            found.append(f"Heat slowed {self.board} down: {', '.join(self.throttled)}. Cool it, and measure again.")
        if self.looks and self.slow_looks > SLOW_LOOKS * self.looks:
            found.append(
                f"The NPU of {self.board} ran below its fastest clock in {self.slow_looks} of {self.looks} looks "
                f"({(self.clock_hertz or 0) // 10**6} of {(self.highest_clock_hertz or 0) // 10**6} MHz at the worst): "
                "heat, or a governor; `ops/board/performance-mode` sets it to its fastest."
            )
        if (self.swapped_bytes or 0) > SWAPPED:
            found.append(
                f"{self.board} moved {(self.swapped_bytes or 0) >> 20} MB to swap and back: give it fewer or smaller models."
            )
        return found

    def not_told(self) -> list[str]:
        """What nobody could look for there."""
        unknown = {"throttling": self.throttled is None, "swapping": self.swapped_bytes is None}
        if self.soc is not None:
            unknown["the NPU's clock"] = self.highest_clock_hertz is None
        return [name for name, missing in unknown.items() if missing]


class Watch:
    """Looks at all boards of a service for the length of the block."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seen: dict[str, Conditions] = {}
        self._swapped: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)
        self.refused: str | None = None
        """Why nobody could look, if so."""

    def __enter__(self) -> Watch:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def seen(self, boards: set[str]) -> list[Conditions]:
        """What was seen of these boards."""
        return [found for name, found in sorted(self._seen.items()) if name in boards]

    def look(self) -> None:
        """One look."""
        try:
            boards = self._service.living_boards()
        except ServiceError as error:
            self.refused = str(error)
            return
        for board in boards:
            self._note(board)

    def _look_on(self) -> None:
        while not self._over.wait(LOOK):
            self.look()

    def _note(self, board: dict[str, Any]) -> None:
        name, clock, memory = board["id"], board["npu_clock"] or {}, board["memory"] or {}
        known = self._seen.setdefault(name, Conditions(board=name))
        known.looks += 1
        for field in ("soc", "machine", "driver", "version"):
            setattr(known, field, board[field])
        throttled = board.get("throttled")
        if throttled is not None:
            known.throttled = sorted({*(known.throttled or ()), *throttled})
        now, highest = clock.get("hertz"), clock.get("highest")
        if now is not None and highest is not None:
            known.highest_clock_hertz = highest
            known.clock_hertz = min(now, known.clock_hertz or now)
            known.slow_looks += now < highest
        if board["temperature"] is not None:
            known.hottest = max(board["temperature"], known.hottest or board["temperature"])
        if (swapped := memory.get("swapped")) is not None:
            known.swapped_bytes = swapped - self._swapped.setdefault(name, swapped)
        if (available := memory.get("available")) is not None:
            known.least_available_bytes = min(available, known.least_available_bytes or available)
