"""What somebody in front of a terminal sees of work that shows how far it is."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from collections.abc import Callable

import pytest


def seen(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], columns: int = 120) -> str:
    """All that reaches the terminal while `work` has one for its standard error; at most 4 KB, which nobody reads meanwhile."""
    main, terminal = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        work()
    shown = b""
    with contextlib.suppress(OSError):  # that is how the end of a terminal reads
        while more := os.read(main, 65536):
            shown += more
    os.close(main)
    return shown.decode()
