"""What stands for systemd where a service says how it does: a socket, and what was said to it."""

from __future__ import annotations

import socket
from typing import Self

LIMIT = 60.0
"""Seconds to wait for a word."""


class Notified:
    """The socket that `NOTIFY_SOCKET` names. `address` begins with @ where it has no file."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.settimeout(LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def next(self) -> list[str]:
        """The lines of the next word, waited for."""
        return self._sock.recv(4096).decode().splitlines()

    def until(self, line: str) -> list[str]:
        """Wait for a word with that line; all lines that came until then."""
        heard: list[str] = []
        while line not in heard:
            heard += self.next()
        return heard

    def forget(self) -> None:
        """Read nothing of what has come so far."""
        self._sock.setblocking(False)
        try:
            while True:
                self._sock.recv(4096)
        except BlockingIOError:
            self._sock.settimeout(LIMIT)

    def hears_nothing(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        self._sock.settimeout(seconds)
        try:
            self._sock.recv(4096)
        except TimeoutError:
            return True
        finally:
            self._sock.settimeout(LIMIT)
        return False
