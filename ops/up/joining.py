"""Joining a service: once it has let this machine's board in, that is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.exceptions import AuthenticationError

from ops.up import discovery
from ops.up.errors import AlreadyRunning
from ops.up.joined import FILE, refusal
from ops.up.lock import DataDirLock
from ops.up.sharing import Token, TokenRefused, parse, parse_token, write_private
from tasks import keys
from tasks.board.board_lock import only_agent
from tasks.connection import UNREACHABLE, connect
from tasks.presence import ALIVE
from tasks.roster import read_roster


def found(text: str) -> str:
    """The URL of the service in the local network that takes the token NAME.SECRET. Raises `TokenRefused`."""
    token = parse_token(text)
    return token.url(*discovery.find(token))


def keep(data_dir: Path, url: str, board: str) -> tuple[str, ...]:
    """Keep what was joined, once its service has let this `board` in; a sentence for each thing there that does not go with
    this machine's version. Raises `TokenRefused`, and `AlreadyRunning` or `BoardRefused` where the data directory is in use."""
    token, host, port = parse(url)
    with _unused(data_dir), only_agent(data_dir, board, token.redis_url(host, port)):
        problems = _let_in(token, host, port, board)
        write_private(data_dir / FILE, url)
    return problems


@contextmanager
def _unused(data_dir: Path) -> Iterator[None]:
    """Nobody serves from this data directory, nor begins to meanwhile: from the next start on it would be a board alone."""
    lock = DataDirLock(data_dir)
    try:
        lock.__enter__()
    except AlreadyRunning as error:
        raise AlreadyRunning(
            f"This machine runs a service of its own from {data_dir}. Join from another machine; to have this one be a board "
            "of that service instead, stop what runs here first, or name another data directory with --data-dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _let_in(token: Token, host: str, port: int, board: str) -> tuple[str, ...]:
    client = connect(token.redis_url(host, port), retries=0)
    try:
        client.ping()
        _make_sure_of_name(client, board)
        return read_roster(client).problems
    except AuthenticationError as error:
        raise TokenRefused(refusal(token, host, port), usage=True) from error
    except UNREACHABLE as error:
        raise TokenRefused(
            f"Nobody answers at {host}:{port} ({error}). Is `rockchipllama up --share` running there, and does a firewall "
            "let its port through?"
        ) from error
    finally:
        client.close()


def _make_sure_of_name(client: redis.Redis, board: str) -> None:
    """Boards fresh from one image are all called the same, and would each overwrite what the other says."""
    before = client.hget(keys.PRESENCE, f"board:{board}")
    gives_up = time.monotonic() + ALIVE + 1
    while before is not None and time.monotonic() < gives_up:
        time.sleep(0.2)  # a breath is a field that changes, and no word
        now = client.hget(keys.PRESENCE, f"board:{board}")
        if now is not None and now != before:
            raise TokenRefused(
                f"A board named '{board}' takes part already. Give this one a name of its own with --name."
            )
