"""What a command does about its job when its terminal is closed, or it is told to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGHUP, signal.SIGTERM)


@contextmanager
def unwinding() -> Iterator[None]:
    """Inside it these signals raise `SystemExit`, so that what Ctrl-C clears away is cleared away for them too. One that is
    ignored, as under `nohup`, stays so."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    for each, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(each, _end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _end(number: int, _: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a closed terminal and its shell both send one
    raise SystemExit(128 + number)
