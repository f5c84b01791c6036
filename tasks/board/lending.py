"""Models given to other boards of the service: over HTTP, to whoever was told the ticket by a command.

A ticket is the first part of a path that nobody can guess, and opens the files of one model. The port is open while there
are tickets, on the one address of this machine that leads to whoever asked.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from npu.catalog import Catalog
from npu.manifest import FILE_NAME
from npu.model import Model
from tasks.board.pull.beside import BESIDE, LICENCES
from tasks.board.pull.record import RECORD, read_record
from tasks.board.pull.weights import SHARD
from tasks.board.route import address_towards, redis_host
from tasks.commands import CommandCode, Lend, LentFile, Loan
from tasks.errors import CommandFailed

log = logging.getLogger("rockchipllama.board")

CHUNK: Final = 1 << 20
LASTS: Final = 3600.0
"""Seconds after its last use that a ticket is good for."""
LOOK: Final = 5.0
"""Seconds between two looks for tickets that are over."""
MOST_FILES: Final = 64
SILENCE: Final = 60.0
"""Seconds in which a connection must say or take something."""

_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class _Ticket:
    files: dict[str, tuple[Path, LentFile, int]]
    """By name: where it lies, what was told of it, and when it was changed, ns."""
    used: float = field(default_factory=time.monotonic)


class Lending:
    """`url` is the Redis of the service, by whose address others are found; `port` 0 is any that is free. Usable from any
    thread."""

    def __init__(self, catalog: Callable[[], Catalog], models_dir: Path, url: str, port: int) -> None:
        self._catalog = catalog
        self._models_dir = models_dir
        self._url = url
        self._port = port
        self._tickets: dict[str, _Ticket] = {}
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._servers: dict[str, ThreadingHTTPServer] = {}
        """By the address they listen on."""
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Lend nothing any more. Twice is safe."""
        self._closed.set()
        self._end(self._tickets.copy())

    def lend(self, wanted: Lend) -> Loan:
        """Open the files of a model to whoever asks. Takes as long as reading them, once. Raises `CommandFailed` and
        `OSError`."""
        model = self._catalog().named(wanted.model)
        if model is None:
            raise CommandFailed(CommandCode.MODEL_MISSING, f"This board has no model '{wanted.model[:100]}'.")
        paths = self._files(model)
        ticket = _Ticket({path.name: (path, self._told(path), path.stat().st_mtime_ns) for path in paths})
        peer = wanted.address or redis_host(self._url) or "127.0.0.1"
        name = secrets.token_urlsafe(32)
        address = address_towards(peer)
        with self._lock:
            if self._closed.is_set():
                raise CommandFailed(CommandCode.NETWORK, "This board is being stopped.")
            server = self._serve(address)
            self._tickets[name] = ticket
        host = f"[{address}]" if ":" in address else address
        log.info("%s is lent to a board at %s", model.id, peer)
        return Loan(
            url=f"http://{host}:{server.server_port}/{name}",
            id=model.id,
            names=model.names,
            engine=model.engine,
            soc=model.soc,
            files=tuple(told for _, told, _ in ticket.files.values()),
        )

    def _files(self, model: Model) -> list[Path]:
        """What the model is made of, its weights first. Raises `CommandFailed` for one that cannot be given away alone."""
        if model.path is None or model.base:
            what = f"is made from {model.base}" if model.base else "has no weights"
            raise CommandFailed(CommandCode.NOT_POSSIBLE, f"'{model.id}' {what}, so there is nothing to copy.")
        folder = model.path.parent
        own = model.manifest is not None
        if own and folder == self._models_dir:
            raise CommandFailed(CommandCode.NOT_POSSIBLE, f"'{model.id}' has no folder of its own on this board.")
        shard = SHARD.search(model.path.stem)
        shards = (
            sorted(folder.glob(f"{model.path.stem[: shard.start()]}-*{model.path.suffix}")) if shard else [model.path]
        )
        beside = sorted(
            entry
            for entry in folder.iterdir()
            if entry not in shards
            and entry.is_file()
            and not entry.name.startswith(".")
            and entry.name != RECORD
            and (own or entry.name in (*BESIDE, *LICENCES))
        )
        if len(shards) + len(beside) > MOST_FILES:
            raise CommandFailed(
                CommandCode.NOT_POSSIBLE, f"The folder of '{model.id}' has more than {MOST_FILES} files."
            )
        return [*shards, *beside]

    def _told(self, path: Path) -> LentFile:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = _recorded(path, stat.st_size) or _digest(path)
        return LentFile(path.name, stat.st_size, self._digests[key])

    def _serve(self, address: str) -> ThreadingHTTPServer:
        """What listens there. Raises `OSError`."""
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = _Server((address, self._port), self._find)
            threading.Thread(target=server.serve_forever, args=(0.5,), name="lending", daemon=True).start()
            if len(self._servers) == 1:
                threading.Thread(target=self._look, name="tickets", daemon=True).start()
        return server

    def _find(self, path: str) -> tuple[Path, LentFile, _Ticket] | None:
        """The file behind a path; None where there is no such ticket or file, or it is another one by now."""
        name, _, file = path.lstrip("/").partition("/")
        with self._lock:
            ticket = self._tickets.get(name)
            if ticket is None:
                return None
            ticket.used = time.monotonic()
        place, told, changed = ticket.files.get(unquote(file)) or (None, None, 0)
        if place is None or told is None:
            return None
        with suppress(OSError):
            stat = place.stat()
            if (stat.st_size, stat.st_mtime_ns) == (told.size, changed):
                return place, told, ticket
        return None

    def _look(self) -> None:
        while not self._closed.wait(LOOK):
            now = time.monotonic()
            with self._lock:
                over = {name: each for name, each in self._tickets.items() if now - each.used > LASTS}
            if self._end(over):
                return

    def _end(self, over: dict[str, _Ticket]) -> bool:
        """Let these tickets open nothing any more; whether none is left, and nothing listens."""
        with self._lock:
            for name in over:
                self._tickets.pop(name, None)
            if self._tickets:
                return False
            servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            server.shutdown()
            server.server_close()
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], find: Callable[[str], tuple[Path, LentFile, _Ticket] | None]) -> None:
        self.find = find
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a copy of a model was broken off by %s", client_address)  # it goes on with another request


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = SILENCE

    def do_HEAD(self) -> None:
        self._answer(whole=False)

    def do_GET(self) -> None:
        self._answer(whole=True)

    def _answer(self, *, whole: bool) -> None:
        found = self.server.find(self.path)
        if found is None:
            self.send_error(404)
            return
        path, told, ticket = found
        tag = f'"{told.sha256}"'
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.headers.get("If-Range", tag) == tag else 0
        if start > told.size:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{told.size - 1}/{told.size}")
        self.send_header("Content-Length", str(told.size - start))
        self.send_header("ETag", tag)
        self.end_headers()
        left = told.size - start if whole else 0
        with path.open("rb") as file:
            file.seek(start)
            while left and (data := file.read(min(CHUNK, left))):
                self.wfile.write(data)
                ticket.used = time.monotonic()  # a large file may take longer over a slow line than a ticket lasts
                left -= len(data)
        if left:
            self.close_connection = True  # it became shorter: whoever reads notices

    def log_message(self, format: str, *args: object) -> None:
        """The path would tell the ticket."""


def _recorded(path: Path, size: int) -> str | None:
    """The digest that was verified when the file was pulled, unless it was changed since."""
    record = read_record(path.parent)
    if record is None or path.name == FILE_NAME or path.stat().st_mtime > (path.parent / RECORD).stat().st_mtime:
        return None
    return next((file.sha256 for file in record.files if (file.name, file.size) == (path.name, size)), None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
