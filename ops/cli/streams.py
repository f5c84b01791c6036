"""The standard streams as whoever started a command left them: closed, full, or in another encoding."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


def settle() -> None:
    """Have all three there, what is read be text or an error, and what is written be readable as far as the terminal goes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; the next file that is opened would take its place
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def let_go() -> None:
    """Write nothing more to the standard output: Python would try again at its end, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
