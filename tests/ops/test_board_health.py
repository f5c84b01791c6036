"""What the health check of a board's container says."""

from __future__ import annotations

import socket
import time

import pytest
import redis

from ops import board_health
from ops.board_health import main
from tasks import presence


@pytest.mark.parametrize("words", [[], ["--alive"]])
def test_a_board_is_well_while_it_breathes(
    words: list[str], client: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own name, whoever else does."""
    monkeypatch.setenv("ROCKCHIPLLAMA_REDIS_URL", valkey_url)
    monkeypatch.setenv("ROCKCHIPLLAMA_BOARD_NAME", "one")
    presence.breathe(client, presence.Presence(name="board:other", board="other", started=time.time()))
    assert main(words) == 1
    presence.breathe(client, presence.Presence(name="board:one", board="one", started=time.time()))
    assert main(words) == 0
    presence.breathe(client, presence.Presence(name="board:one", board="one", started=time.time(), drained=True))
    assert main(words) == 0  # who ended it for that would end it again and again


def test_a_board_without_redis_is_alive_and_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """To end it would change nothing."""
    monkeypatch.setenv("ROCKCHIPLLAMA_REDIS_URL", "unix:///nonexistent/valkey.sock")
    assert main([]) == 1
    assert main(["--alive"]) == 0


def test_a_redis_that_stands_still_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several times would take longer than the probes of Kubernetes wait, which would end the board for it."""
    monkeypatch.setattr(board_health, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as still:
        still.setblocking(False)
        monkeypatch.setenv("ROCKCHIPLLAMA_REDIS_URL", f"redis://127.0.0.1:{still.getsockname()[1]}/0")
        assert main(["--alive"]) == 0
        still.accept()[0].close()
        with pytest.raises(BlockingIOError):
            still.accept()
