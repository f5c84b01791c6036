"""How workers come back to Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kombu.utils.functional
import pytest

from tasks.broker import RECONNECT, celery_app


class Enough(Exception):
    """Raised by the test when it has seen enough."""


def test_a_worker_tries_again_soon_however_long_redis_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked when Redis is back would wait as long as its worker does. The log hears of it once."""
    connection = celery_app(f"unix://{tmp_path}/nobody.sock").connection_for_read()
    said: list[Exception] = []
    tries: list[float] = []
    connect = connection._connection_factory

    def counting() -> Any:
        tries.append(0.0)
        if len(tries) > 200:
            raise Enough
        return connect()

    def waiting(seconds: float) -> None:
        tries[-1] += seconds

    monkeypatch.setattr(connection, "_connection_factory", counting)
    monkeypatch.setattr(kombu.utils.functional, "sleep", waiting)
    with pytest.raises(Enough):
        connection.ensure_connection(
            lambda error, interval: said.append(error), celery_app("unix:///x").conf.broker_connection_max_retries
        )
    assert 0 < max(tries) <= RECONNECT
    assert len(said) == 1
