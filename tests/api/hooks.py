"""A receiver of webhooks."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias

from tests.stack import LIMIT

Calls: TypeAlias = "queue.Queue[tuple[dict[str, str], bytes]]"


CERTIFICATE = Path(__file__).parents[1] / "fakes" / "webhook_tls.pem"
"""A certificate of hook.example with its key, signed by itself; made for these tests with `openssl req -x509`."""


@contextmanager
def called(*statuses: int, location: str | None = None, tls: bool = False) -> Iterator[tuple[str, Calls]]:
    """Its address on loopback, and the headers and bodies that come there, answered with these statuses, then with the last."""
    calls: Calls = queue.Queue()
    answers = iter(statuses)
    last = statuses[-1] if statuses else 200

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            calls.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(next(answers, last))
            if location is not None:
                self.send_header("location", location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/hook?x=1", calls
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT)
