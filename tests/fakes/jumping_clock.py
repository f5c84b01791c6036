"""A wall clock that jumps as a test tells it, for real processes: a library that is preloaded into them."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from npu.simulator.library import find_compiler

SOURCE = Path(__file__).with_suffix(".c")

HOUR = 3600
AGES = 56 * 365 * 24 * HOUR
"""From the year a board boots in to ours, in seconds."""


class JumpingClock:
    """The clock of every process that is started with `environment`."""

    def __init__(self, folder: Path) -> None:
        library, self._shift = folder / "jumping_clock.so", folder / "shift"
        subprocess.run([*find_compiler(), "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True)
        self.environment = {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(self._shift)}
        self.seconds = 0
        """How far it is from the right time."""
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Let it jump, now."""
        self.seconds += seconds
        with self._shift.open("r+b" if self._shift.exists() else "xb") as file:
            file.write(struct.pack("=q", self.seconds))
