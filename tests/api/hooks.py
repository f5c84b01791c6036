"""A receiver of webhooks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

Calls: TypeAlias = "queue.Queue[tuple[dict[str, str], bytes]]"


@contextmanager
def called(status: int = 200, location: str | None = None) -> Iterator[tuple[str, Calls]]:
    """Its address on loopback, and the headers and bodies that come there, each answered with this status."""
    calls: Calls = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            calls.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            if location is not None:
                self.send_header("location", location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?x=1", calls
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
