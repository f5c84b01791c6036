"""A file that lies in memory and nowhere else: no folder has it, and the kernel frees it with the process, however that ends."""

from __future__ import annotations

import os
from pathlib import Path


class MemoryFile:
    """One such file, empty at first. Whoever writes or reads it in this process, in any language, opens `path`."""

    def __init__(self) -> None:
        """Raises `OSError` where the kernel gives none."""
        self._file = os.memfd_create("rockchipllama", os.MFD_CLOEXEC)
        os.fchmod(self._file, 0o600)
        self.path = Path(f"/proc/self/fd/{self._file}")

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        """Give its memory back. Twice is safe."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
