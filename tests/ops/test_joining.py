"""What `join` keeps and says: nothing is stored where it is refused, and nobody takes part who is not let in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ops.cli import board, join, options
from ops.up import joined, joining, sharing
from ops.up.errors import AlreadyRunning, UpError
from ops.up.lock import DataDirLock
from ops.up.sharing import RIGHTS, Token, TokenRefused, new_secret
from tasks.board.board_lock import BoardRefused, only_agent
from tests.stack import free_port

TOKEN = Token("kitchen", new_secret())


@pytest.fixture
def url(client: redis.Redis) -> Iterator[str]:
    """Of a service that takes the token."""
    port = free_port()
    client.config_set("port", port)
    client.execute_command("ACL", "SETUSER", TOKEN.user, "on", f">{TOKEN.secret}", *RIGHTS)  # type: ignore[no-untyped-call]
    yield TOKEN.url("127.0.0.1", port)
    client.execute_command("ACL", "DELUSER", TOKEN.user)  # type: ignore[no-untyped-call]
    client.config_set("port", 0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a board whose agent ends at once."""
    monkeypatch.setenv("ROCKCHIPLLAMA_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ROCKCHIPLLAMA_BOARD_NAME", "kitchen")
    monkeypatch.setattr(options, "apply", lambda *_, **__: None)
    monkeypatch.setattr(board, "board", lambda: print("It runs."))
    return tmp_path


def test_where_something_runs_nothing_is_kept(url: str, data: Path) -> None:
    """Neither a service of its own, which would be none after its next start, nor another board."""
    with DataDirLock(data), pytest.raises(AlreadyRunning, match="Join from another machine"):
        joining.keep(data, url, "kitchen")
    with only_agent(data, "hall", url), pytest.raises(BoardRefused, match="already uses"):
        joining.keep(data, url, "kitchen")
    assert joined.redis_url(data) is None
    assert joining.keep(data, url, "kitchen") == ()
    assert joined.redis_url(data) is not None
    with only_agent(data, "hall", url), pytest.raises(BoardRefused, match="already uses"):
        join.run()


def test_it_takes_part_once_it_is_let_in(
    url: str, data: Path, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service that is away is waited for; one that takes the token no more is told as when it was typed."""
    joining.keep(data, url, "kitchen")
    join.run()
    assert capsys.readouterr().out.startswith("The board 'kitchen' takes part in the service at 127.0.0.1:")
    _, _, port = sharing.parse(url)
    client.config_set("port", 0)
    join.run()
    away = capsys.readouterr().out
    assert away.startswith(f"Nobody answers at 127.0.0.1:{port} (") and away.endswith("It runs.\n")
    assert "takes part once the service does" in away
    client.config_set("port", port)
    client.execute_command("ACL", "SETUSER", TOKEN.user, "off")  # type: ignore[no-untyped-call]
    with pytest.raises(TokenRefused, match=r"'kitchen': it was revoked.*join --forget") as refused:
        join.run()
    assert capsys.readouterr().out == "" and TOKEN.secret not in str(refused.value)
    assert refused.value.usage, "systemd starts it again after other failures, and nothing would come of that"


def test_a_board_that_runs_is_told_that_it_goes_on(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is forgotten counts from its next start."""
    (data / joined.FILE).write_text("rl://")
    with only_agent(data, "kitchen", "redis://127.0.0.1/0"):
        join.join(forget=True, url=None, name=None)
    assert "goes on until it is stopped" in capsys.readouterr().out
    join.join(forget=True, url=None, name=None)
    assert capsys.readouterr().out == "This machine has joined nothing.\n"
    (data / joined.FILE).write_text("rl://")
    join.join(forget=True, url=None, name=None)
    assert "nothing any more" in capsys.readouterr().out


def test_a_models_folder_that_is_none_is_refused_first(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `up` does: before anybody is asked, anything kept, or a board started without models."""
    (data / "file").touch()
    for name, why in (("file", "is a file"), ("nope", "is not there")):
        monkeypatch.setenv("ROCKCHIPLLAMA_MODELS_DIR", str(data / name))
        for start in (lambda: join.join(TOKEN.url("127.0.0.1", 1)), join.run):
            with pytest.raises(UpError, match=f"The models folder {data / name} {why}"):
                start()
    assert joined.redis_url(data) is None
