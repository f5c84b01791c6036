"""A first visit to a service that was installed from a bundle, in a network that leads nowhere: `offline_visit.py FOLDER`.

Runs in a namespace of its own, as root of that. Prints one JSON object with what was found.
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMIT = 240.0
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def open_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def route() -> str | None:
    """Why an address of the internet cannot be reached; None when it can."""
    with socket.socket() as sock:
        sock.settimeout(5)
        try:
            sock.connect(("192.0.2.1", 80))
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
    return None


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def ready(port: int) -> dict[str, Any]:
    """What the service says of itself once it has loaded a model."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            _, said = ask(port, "/v1/health")
            health: dict[str, Any] = json.loads(said)
            if any(model["loaded"] for model in health["models"]):
                return health
        except (OSError, http.client.HTTPException, LookupError, ValueError):
            pass
        time.sleep(0.1)
    raise SystemExit("no model was loaded")


def main(folder: Path) -> dict[str, Any]:
    open_loopback()
    found: dict[str, Any] = {"route": route()}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [folder / "ops/run", "--offline", "--port", str(port), "--data-dir", folder / "data"]
    with (folder / "said").open("wb") as said:
        service = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        [model] = [model["id"] for model in ready(port)["models"] if model["loaded"]]
        found["model"] = model
        body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello there"}]}
        status, answer = ask(port, "/v1/chat/completions", body)
        found["chat"] = [status, json.loads(answer)["choices"][0]["message"]["content"]]
        status, page = ask(port, "/docs")
        files = re.findall(r"""(?:src|href)=["']([^"']+)""", page.decode())
        found["docs"] = [status, {name: ask(port, name)[0] for name in files}]
    finally:
        service.send_signal(signal.SIGINT)
        found["ended"] = service.wait(LIMIT)
        print((folder / "said").read_text(errors="replace"), file=sys.stderr)
    return found


if __name__ == "__main__":
    os.umask(0o022)
    print(json.dumps(main(Path(sys.argv[1]))))
