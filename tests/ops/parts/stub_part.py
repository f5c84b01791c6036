"""A part of the service that does nothing but what its name says: `stub_part.py BEHAVIOUR JOURNAL [WORD]`."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from ops import environment
from tasks import lifeline, systemd

behaviour, journal = sys.argv[1], Path(sys.argv[2])


def note(word: str) -> None:
    """One line in the journal; appends of this size are atomic."""
    with journal.open("a") as file:
        file.write(f"{behaviour} {word} {os.getpid()}\n")


def stop(*_: object) -> None:
    note("stopped")
    sys.exit(0)


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "ok", "models": [{"id": "tiny", "engine": "echo", "loaded": True}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve() -> None:
    """Answer on the inherited socket."""
    sock = socket.socket(fileno=environment.listen_fd())
    server = http.server.ThreadingHTTPServer(sock.getsockname()[:2], Health, bind_and_activate=False)
    server.socket = sock
    threading.Thread(target=server.serve_forever, daemon=True).start()


signal.signal(signal.SIGTERM, stop)
if behaviour == "ignores_sigterm":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
lifeline.watch(grace=1.0)
note("started")
print(f"{behaviour} says hello", flush=True)
if behaviour == "refuses":
    print("rockchipllama: this cannot be.", flush=True)
    sys.exit(2)
if behaviour == "dies_at_once":
    print("out of luck", flush=True)
    sys.exit(3)
if behaviour in ("api", "ignores_sigterm"):
    serve()
if behaviour == "board":
    child = [sys.executable, __file__, "worker", str(journal)]
    subprocess.Popen(child, start_new_session=True, pass_fds=lifeline.fds())
if behaviour == "api":
    systemd.tell("READY=1")
pulse = systemd.Pulse()
while True:
    if behaviour != "worker":
        pulse.beat()
    time.sleep(1 if pulse.pause is None else pulse.pause / 4)
