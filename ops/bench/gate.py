"""Holds back a model's queue: a job that reads a very long prompt until it is told to end."""

from __future__ import annotations

import contextlib
import socket

from ops.bench.client import LIMIT, chat
from ops.bench.service import GATE, Service

PROMPT = "x" * 100_000
"""Fifty seconds at the model's pace."""


class Gate:
    """Shut from the beginning of the block until `open`, or its end."""

    def __init__(self, service: Service) -> None:
        service.load(GATE)  # also makes the engine forget an earlier gate's prompt
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=LIMIT)

    def __enter__(self) -> Gate:
        self._socket.sendall(chat(GATE, PROMPT, max_tokens=1))
        head = self._socket.recv(4096)  # comes once the patience of a stream is over, with the job in hand
        if not head.startswith(b"HTTP/1.1 200"):
            self._socket.close()
            raise RuntimeError(f"the queue could not be held back: {head[:300]!r}")
        return self

    def open(self) -> None:
        """Let the others go: the client leaves, so its job ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __exit__(self, *exc: object) -> None:
        self.open()
