"""A server of one file that behaves badly in every way a network can."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves its `content` at every address."""

    def __init__(self, name: str, content: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{name}"
        self.content = content
        self.cuts: list[int] = []
        """How many bytes are sent before each of the next connections drops."""
        self.errors: list[int] = []
        """What the next requests are answered with instead."""
        self.code = 200
        """What all are, when it is another."""
        self.ranges = True
        self.asked: list[str | None] = []
        """The ranges of all requests."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        code = self.server.errors.pop(0) if self.server.errors else self.server.code
        if code != 200:
            self.send_error(code)
            return
        whole = self.server.content
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if begin and begin >= len(whole):
            self.send_error(416)
            return
        rest = whole[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.cuts.pop(0)] if self.server.cuts else rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(name: str, content: bytes = b"") -> Iterator[FileServer]:
    """Such a server, running."""
    with FileServer(name, content) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
