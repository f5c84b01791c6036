"""Asks the API, until a model is ready, how things stand."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tasks import sentinel

PAUSE = 0.2
"""Seconds between two questions at first."""
LONGEST_PAUSE = 5.0
"""Seconds between two questions when nothing has been ready for long."""


@dataclass
class Readiness:
    """What the API said last. Written by one thread, read by another."""

    served: bool = False
    """Requests are accepted."""
    models: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why not, if not."""
    needs_key: bool = False
    """Clients must show a key."""

    @property
    def loading(self) -> list[str]:
        """Models on their way into memory."""
        return [str(model.get("id", "?")) for model in self.models if model.get("loading")]

    @property
    def loaded(self) -> list[dict[str, Any]]:
        """Models in memory."""
        return [model for model in self.models if model.get("loaded")]

    def ready(self, preload: bool) -> bool:
        """Whether a first answer comes at once; without `preload` models are only loaded on demand."""
        return self.served and (bool(self.loaded) or not preload)


class Probe:
    """A thread that asks `/v1/health` until a model is ready, then ends: an idle service is not polled.

    First of all it knocks at `redis_url`, if there is one: nothing gets ready without it.
    """

    def __init__(self, url: str, preload: bool, on_change: Callable[[], None], redis_url: str | None = None) -> None:
        self.state = Readiness()
        self.absent: str | None = None
        """Where Redis should be, while nobody listens there: host and port, or a socket."""
        self._redis_url = redis_url
        self._preload = preload
        self._address = urlsplit(url)
        self._on_change = on_change
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="readiness", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. Twice is safe."""
        self._over.set()

    def _ask_on(self) -> None:
        while self._redis_url is not None and not self._over.is_set() and not listens(self._redis_url):
            self.absent = place(self._redis_url)
            self._on_change()
            self._over.wait(1.0)
        self.absent = None
        pause = PAUSE
        while not self._over.is_set() and not self.state.ready(self._preload):
            self._ask()
            self._on_change()
            self._over.wait(pause)
            # A board without models is not asked five times a second for ever.
            pause = min(LONGEST_PAUSE, pause * 1.02)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=5.0)
        try:
            connection.request("GET", "/v1/health")
            answer = connection.getresponse()
            self.state = _read(answer.status, answer.read(1_000_000))
        except (OSError, http.client.HTTPException):
            return  # not up yet, or being started again
        finally:
            connection.close()


def listens(redis_url: str, seconds: float = 2.0) -> bool:
    """Whether anybody listens where the URL of a Redis points to."""
    if (named := sentinel.named_by(redis_url)) is not None:
        return any(_listens(host, port, seconds) for host, port in named.hosts)
    found = urlsplit(redis_url)
    try:
        if found.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(seconds)
                client.connect(found.path)
        else:
            return _listens(found.hostname or "localhost", found.port or 6379, seconds)
    except OSError:
        return False
    return True


def _listens(host: str, port: int, seconds: float) -> bool:
    try:
        socket.create_connection((host, port), seconds).close()
    except (OSError, UnicodeError):
        return False
    return True


def place(redis_url: str) -> str:
    """Where that is, without user and password."""
    if (named := sentinel.named_by(redis_url)) is not None:
        return " or ".join(_shown(host, port) for host, port in named.hosts)
    found = urlsplit(redis_url)
    if found.scheme == "unix":
        return found.path
    return _shown(found.hostname or "localhost", found.port or 6379)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read(status: int, body: bytes) -> Readiness:
    try:
        said = json.loads(body)
        return Readiness(
            status == http.HTTPStatus.OK,
            list(said["models"]),
            list(said.get("reasons", [])),
            bool(said.get("needs_key")),
        )
    except (ValueError, LookupError, TypeError):
        return Readiness(reasons=[f"the API answers /v1/health with {status} and no word of its models"])
