"""Where the llama-server of an engine listens, and how it is asked: one address file, one client."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npu.errors import EngineFailed, PromptRefused
from npu.model import Model

ADDRESS_FILE = "server.json"
SOCKET_FILE = "s.sock"
"""llama-server takes a host for a socket when it ends in `.sock`, and for a network address to open when it does not."""

SOCKET_PATH_BYTES = 107
"""The kernel's limit for the path of a Unix socket."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where one engine listens, and the key it asks for. Written beside the socket, readable by its owner only."""

    socket: Path
    key: str
    context_length: int
    """Tokens, prompt and answer together."""


def model_dir(model: Model, runtime_dir: Path) -> Path:
    """The model's own folder in the runtime directory."""
    return runtime_dir / model.id


def publish_address(folder: Path, context_length: int) -> Address:
    """Choose a socket and a key, and write them down for tokenizers in other processes. Raises `EngineFailed`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        withdraw_address(folder)
        path = (folder / SOCKET_FILE).absolute()
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            path = Path(tempfile.mkdtemp(prefix="rl-")) / SOCKET_FILE  # mkdtemp makes it 0700.
            if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
                raise EngineFailed(
                    f"{path} is too long for a Unix socket ({SOCKET_PATH_BYTES} bytes). Use a shorter TMPDIR."
                )
        address = Address(path, secrets.token_urlsafe(32), context_length)
        draft = folder / f"{ADDRESS_FILE}.new"
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"socket": str(path), "key": address.key, "context_length": context_length}, file)
        draft.replace(folder / ADDRESS_FILE)
        return address
    except OSError as error:
        raise EngineFailed(f"The engine's folder {folder} cannot be used: {error.strerror or error}.") from error


def read_address(folder: Path) -> Address | None:
    """What `publish_address` wrote there; None when nothing is published."""
    try:
        stored = json.loads((folder / ADDRESS_FILE).read_text())
        return Address(Path(stored["socket"]), stored["key"], stored["context_length"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def withdraw_address(folder: Path) -> None:
    """Remove the address and the socket, also those a killed engine left behind. Twice is safe."""
    address = read_address(folder)
    with suppress(FileNotFoundError):
        (folder / ADDRESS_FILE).unlink()
    if address is not None:
        with suppress(FileNotFoundError):
            address.socket.unlink()
        if address.socket.parent != folder.absolute():
            with suppress(OSError):  # It held the socket only; anything else in it is not ours to remove.
                address.socket.parent.rmdir()


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, seconds: float | None) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Call:
    """One request. `cancel` from another thread ends it, wherever it is; the server notices at its next write."""

    def __init__(self, address: Address, path: str, body: dict[str, Any], seconds: float | None = None) -> None:
        self._connection = _Connection(address.socket, seconds)
        self._headers = {"Authorization": f"Bearer {address.key}", "Content-Type": "application/json"}
        self._path = path
        self._body = json.dumps(body).encode()
        self._lock = threading.Lock()
        self._cancelled = False

    def cancel(self) -> None:
        """Break the connection. Twice is safe."""
        with self._lock:
            self._cancelled = True
            if self._connection.sock is not None:
                with suppress(OSError):
                    self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection. Twice is safe."""
        with self._lock:
            self._connection.close()

    def result(self) -> dict[str, Any]:
        """The whole answer. Raises `OSError`, `http.client.HTTPException`, and what `_refusal` makes of an error."""
        try:
            answer = json.loads(self._send().read())
            assert isinstance(answer, dict)
            return answer
        finally:
            self.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """The server-sent events of a streamed answer, as they come. Raises as `result` does."""
        try:
            response = self._send()
            rest = b""
            while part := response.read1(1 << 16):
                *events, rest = (rest + part).split(b"\n\n")
                for event in events:
                    field, _, data = event.partition(b": ")
                    if field == b"error" or data.startswith(b'{"error"'):
                        raise _refusal(json.loads(data))
                    if field == b"data" and data != b"[DONE]":
                        yield json.loads(data)
        finally:
            self.close()

    def _send(self) -> http.client.HTTPResponse:
        with self._lock:
            if self._cancelled:
                raise ConnectionAbortedError("cancelled")
            self._connection.connect()
        self._connection.request("POST", self._path, self._body, self._headers)
        response = self._connection.getresponse()
        if response.status != 200:
            raise _refusal(json.loads(response.read() or b"{}"))
        return response


def _refusal(answer: dict[str, Any]) -> PromptRefused | EngineFailed:
    error = answer.get(
        "error", answer
    )  # The body of an error wraps it, a server-sent `error:` event is the error itself.
    details = error if isinstance(error, dict) else {"message": str(error)}
    message, code = str(details.get("message", details)).rstrip("."), details.get("code")
    if code == 400:
        return PromptRefused(f"llama.cpp refused the request: {message}.")
    if code == 503:
        return EngineFailed("The model is still loading. Try again in a moment.")
    return EngineFailed(f"llama.cpp failed: {message}.")
