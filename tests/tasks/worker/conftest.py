"""Where a worker's child is tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.tasks.worker.place import Place


@pytest.fixture
def make(
    client: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Place]]:
    """Makes the place, on the shared Valkey or another."""
    made: list[Place] = []

    def build(url: str = valkey_url, board: str = "one", **settings: float) -> Place:
        made.append(Place(url, tmp_path, monkeypatch, board, **settings))
        return made[-1]

    yield build
    for place in made:
        place.close()
