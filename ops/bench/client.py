"""A bare HTTP client on one blocking connection: it measures the service, so it must cost next to nothing itself."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

LIMIT = 120.0
"""Seconds an answer may take before the measurement is given up."""


@dataclass(slots=True)
class Stream:
    """One streamed answer as it arrived. Times by `time.perf_counter`."""

    sent: float
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def deltas(self) -> list[float]:
        """When each piece with text in it arrived."""
        return [at for at, data in self.arrivals if b'"content":' in data and b'"delta":{"' in data]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The objects the answer consists of."""
        lines = b"".join(data for _, data in self.arrivals).split(b"\n")
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]

    @property
    def text(self) -> str:
        """The whole answer."""
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def timings(self) -> dict[str, float]:
        """What the engine itself took, as the service reports it."""
        return next((chunk["timings"] for chunk in reversed(self.chunks) if "timings" in chunk), {})


class Line:
    """One kept-alive connection. Raises `OSError` when it breaks, `ValueError` on an answer that is no success."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        status, head = self._head()
        size = next(int(line[15:]) for line in head if line.startswith(b"content-length:"))
        while len(self._buffer) < size:
            self._receive()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return status, body

    def stream(self, request: bytes) -> Stream:
        """Send a request made by `chat`, and read its answer to the end."""
        stream = Stream(time.perf_counter())
        self._socket.sendall(request)
        status, _ = self._head()
        if status != 200:
            raise ValueError(f"the service answered {status}: {self._buffer[:300]!r}")
        while True:
            at = time.perf_counter()
            while b"\r\n" not in self._buffer:
                at = self._receive()
            size_line, _, rest = self._buffer.partition(b"\r\n")
            size = int(size_line, 16)
            while len(rest) < size + 2:
                at = self._receive()
                rest = self._buffer.partition(b"\r\n")[2]
            self._buffer = rest[size + 2 :]
            if size == 0:
                return stream
            stream.arrivals.append((at, rest[:size]))

    def _head(self) -> tuple[int, list[bytes]]:
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        return int(lines[0].split()[1]), lines[1:]

    def _receive(self) -> float:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the service closed the connection in mid-answer")
        self._buffer += data
        return time.perf_counter()


def chat(model: str, messages: list[dict[str, str]] | str, **options: object) -> bytes:
    """A request for a streamed chat."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    body = json.dumps({"model": model, "messages": turns, "stream": True, **options}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
