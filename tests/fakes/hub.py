"""A hub of models on this machine that behaves as badly as it is told to: listings, files, and a second server for those."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "c0ffee"


@dataclass
class Repo:
    """One repository."""

    files: dict[str, bytes]
    gated: bool = False
    """Only whoever sends the token `yes` may have its files."""
    card: dict[str, object] = field(default_factory=dict)


class Hub:
    """`repos` by name. Of `faults` the next download takes one; a listing takes one of `listing_faults`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.listing_faults: list[Fault] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Each request's path and headers; those to the second server begin with `/cdn/`."""
        self.tags: dict[str, str] = {}
        """Entity tags instead of the digests, by the file's name."""
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._front = _Server(self)
        self._store = _Server(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._front.server_port}"

    @property
    def store_url(self) -> str:
        return f"http://127.0.0.1:{self._store.server_port}"

    def ranges(self) -> list[str | None]:
        """What was asked for of each file, in order."""
        return [headers.get("Range") for path, headers in self.asked if path.startswith("/cdn/")]

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        servers = (self._front, self._store)
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            self.may_go_on.set()
            for server in servers:
                server.shutdown()
                server.server_close()


@dataclass
class Fault:
    """What goes wrong with one answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes after which the connection is dropped."""
    lie: int = 0
    """Bytes more than there are that are promised."""
    no_ranges: bool = False
    hold: int | None = None
    """Bytes after which it waits until it may go on."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever is asked to wait too long leaves; that is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        hub, path = self.server.hub, urlsplit(self.path).path
        hub.asked.append((path, dict(self.headers)))
        if path.startswith("/api/models/"):
            self._listing(path.removeprefix("/api/models/").rpartition("/revision/")[0])
        elif "/resolve/" in path:
            repo, _, rest = path.strip("/").partition("/resolve/")
            self._resolve(repo, rest.partition("/")[2])
        else:
            self._file(*path.removeprefix("/cdn/").split("/", 2))

    def _listing(self, name: str) -> None:
        hub = self.server.hub
        if hub.listing_faults:
            fault = hub.listing_faults.pop(0)
            self._refuse(fault.status, fault.headers)
            return
        repo = hub.repos.get(name)
        if repo is None:
            self._refuse(401, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)},
            }
            if path.endswith((".gguf", ".rkllm"))
            else {"rfilename": path, "size": len(data)}
            for path, data in repo.files.items()
        ]
        body = json.dumps({"sha": COMMIT, "siblings": siblings, "cardData": repo.card}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _resolve(self, name: str, path: str) -> None:
        repo = self.server.hub.repos[name]
        if repo.gated and self.headers.get("Authorization") != "Bearer yes":
            self._refuse(403 if self.headers.get("Authorization") else 401, {"X-Error-Code": "GatedRepo"})
            return
        if path not in repo.files:
            self._refuse(404, {})
            return
        self._refuse(302, {"Location": f"{self.server.hub.store_url}/cdn/{name}/{path}"})

    def _file(self, owner: str, name: str, path: str) -> None:
        hub = self.server.hub
        fault = hub.faults.pop(0) if hub.faults else Fault()
        if fault.status:
            self._refuse(fault.status, fault.headers)
            return
        data = hub.repos[f"{owner}/{name}"].files[path]
        tag = hub.tags.get(path, f'"{hashlib.sha256(data).hexdigest()}"')
        asked = None if fault.no_ranges else self.headers.get("Range")
        if asked and self.headers.get("If-Range", tag) != tag:
            asked = None
        first, _, end = (asked or "").removeprefix("bytes=").partition("-")
        begin, past = int(first or 0), int(end) + 1 if end else len(data)
        if begin >= len(data):
            self._refuse(416, {})
            return
        rest = data[begin:past]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{past - 1}/{len(data)}")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(rest) + fault.lie))
        self.end_headers()
        if fault.hold is not None:
            self.wfile.write(rest[: fault.hold])
            self.wfile.flush()
            hub.may_go_on.wait(60)
            rest = rest[fault.hold :]
        self.wfile.write(rest if fault.cut is None else rest[: fault.cut])

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
