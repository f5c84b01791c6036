"""Asks the API, until it says yes, whether a model is ready."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PAUSE = 0.2
"""Seconds between two questions."""


@dataclass
class Readiness:
    """What the API said last. Written by one thread, read by another."""

    api: bool = False
    """It answers at all."""
    ready: bool = False
    models: list[dict[str, Any]] = field(default_factory=list)


class Probe:
    """A thread that asks `/readyz` until it answers 200, then ends: an idle service is not polled."""

    def __init__(self, url: str, on_change: Callable[[], None]) -> None:
        self.state = Readiness()
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
        while not self._over.is_set() and not self.state.ready:
            before = (self.state.api, self.state.ready)
            self._ask()
            if (self.state.api, self.state.ready) != before:
                self._on_change()
            self._over.wait(PAUSE)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=5.0)
        try:
            connection.request("GET", "/readyz", headers={"Accept": "application/json"})
            answer = connection.getresponse()
            body = answer.read(1_000_000)
        except (OSError, http.client.HTTPException):
            return  # not up yet, or being started again
        finally:
            connection.close()
        self.state.models = _models(body)
        self.state.api = True
        self.state.ready = answer.status == http.HTTPStatus.OK


def _models(body: bytes) -> list[dict[str, Any]]:
    try:
        content = json.loads(body)
    except ValueError:
        return []
    models = content.get("models", []) if isinstance(content, dict) else []
    return [model if isinstance(model, dict) else {"id": str(model)} for model in models]
