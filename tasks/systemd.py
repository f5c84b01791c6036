"""What systemd is told of this process: that it is ready, that it lives, that it stops. Whoever else starts it hears nothing.

The protocol is that of sd_notify(3): `NOTIFY_SOCKET` names a socket that takes lines such as `READY=1`, and
`WATCHDOG_USEC` says how long it bears silence. `rockchipllama up` listens to its parts in the same way.
"""

from __future__ import annotations

import logging
import os
import socket
import time

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
OWNER = "WATCHDOG_PID"
VARIABLES = frozenset({SOCKET, WATCHDOG, OWNER})
"""They are meant for one process, not for those that it starts."""

PATIENCE = 2.0
"""Seconds that systemd may take to accept a word."""

log = logging.getLogger("rockchipllama.systemd")


def listens() -> bool:
    """Whether somebody wants to be told."""
    return bool(os.environ.get(SOCKET))  # noqa: TID251 - where whoever started this process listens is no setting


def tell(*lines: str) -> None:
    """Say something, such as `READY=1`. From any thread."""
    name = os.environ.get(SOCKET, "")  # noqa: TID251
    if not name:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto("\n".join(lines).encode(), "\0" + name[1:] if name.startswith("@") else name)
    except OSError as error:
        log.debug("systemd could not be told %s: %s", lines, error)


def longest_silence() -> float | None:
    """Seconds after which this process is taken for dead when it has not said that it lives; None: nobody waits for that."""
    microseconds = os.environ.get(WATCHDOG, "")  # noqa: TID251
    owner = os.environ.get(OWNER, "")  # noqa: TID251
    if not listens() or not microseconds.isdigit() or (owner and owner != str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None


class Pulse:
    """Says that this process lives, from the loop that would stand still if it did not."""

    def __init__(self) -> None:
        silence = longest_silence()
        self.pause = None if silence is None else silence / 3
        """Seconds between two beats; None where nobody waits for them."""
        self._due = 0.0

    def beat(self) -> None:
        """Call it as often as you like: it speaks when it is time."""
        if self.pause is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self.pause
            tell("WATCHDOG=1")
