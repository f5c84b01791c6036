"""The pipe that ties a process to the `rockchipllama up` it belongs to.

`up` holds the write end and never writes. Each process it starts inherits the read end, whose number stands in
`ROCKCHIPLLAMA_LIFELINE_FD`; when `up` is gone, however it went, the pipe closes and every reader knows. Started in
another way (systemd, compose, by hand) there is no such variable, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable

VARIABLE = "ROCKCHIPLLAMA_LIFELINE_FD"
GRACE = 5.0
"""Seconds a process may take to leave in order once the pipe has closed."""

log = logging.getLogger("rockchipllama.lifeline")
_watching: int | None = None
"""The process that watches already: a fork copies this value, but not the thread."""


def fds() -> tuple[int, ...]:
    """What a process must give as `pass_fds` to the processes it starts, so that they can watch too. Often empty."""
    named = os.environ.get(VARIABLE, "")  # noqa: TID251 - an inherited descriptor, not a setting
    if not named.isdigit():
        return ()
    try:
        if stat.S_ISFIFO(os.fstat(int(named)).st_mode):
            return (int(named),)
    except OSError:
        pass
    # Whoever started this process passed the variable on, but not the descriptor.
    log.warning("the lifeline was not inherited; this process will not notice when `rockchipllama up` dies")
    return ()


def watch(on_gone: Callable[[], None] | None = None, *, grace: float = GRACE) -> None:
    """Leave when `up` is gone: call `on_gone` (default: SIGTERM to this process), and exit hard `grace` seconds later.

    Call it once in each process, and again in a forked child. A second call in the same process does nothing.
    """
    global _watching
    if _watching == os.getpid():
        return
    for fd in fds():
        _watching = os.getpid()
        threading.Thread(target=_wait, args=(fd, on_gone, grace), name="lifeline", daemon=True).start()


def _wait(fd: int, on_gone: Callable[[], None] | None, grace: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 1):  # nobody writes; EOF is the only news
            pass
    log.warning("`rockchipllama up` is gone; leaving")
    # Hard, even if what follows gets stuck: SIGTERM may start a drain that waits for work in progress.
    deadline = threading.Thread(target=_leave_after, args=(grace,), name="lifeline-deadline", daemon=True)
    deadline.start()
    if on_gone is not None:
        on_gone()
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _leave_after(grace: float) -> None:
    time.sleep(grace)
    os._exit(1)
