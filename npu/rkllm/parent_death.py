"""A process that ends with whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PARENT_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of prctl."""


def end_with(parent: int) -> None:
    """Have the kernel kill this process once the one of that id, which started it, is gone; now, if it is gone already."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
