"""Joining a service: once it has let this machine's board in, that is kept."""

from __future__ import annotations

import time
from pathlib import Path

import redis
from redis.exceptions import AuthenticationError

from ops.up import discovery
from ops.up.joined import FILE
from ops.up.sharing import TokenRefused, parse, parse_token, write_private
from tasks import keys
from tasks.connection import UNREACHABLE, connect
from tasks.presence import ALIVE
from tasks.roster import read_roster


def found(text: str) -> str:
    """The URL of the service in the local network that takes the token NAME.SECRET. Raises `TokenRefused`."""
    token = parse_token(text)
    return token.url(*discovery.find(token))


def keep(data_dir: Path, url: str, board: str) -> tuple[str, ...]:
    """Keep what was joined, once its service has let this `board` in; a sentence for each thing there that does not go with
    this machine's version. Raises `TokenRefused`."""
    token, host, port = parse(url)
    client = connect(token.redis_url(host, port), retries=0)
    try:
        client.ping()
        _make_sure_of_name(client, board)
        problems = read_roster(client).problems
    except AuthenticationError as error:
        raise TokenRefused(
            f"The service at {host}:{port} does not take the token '{token.name}': it was revoked or is damaged. "
            "`rockchipllama boards invite NAME`, where it runs, makes another."
        ) from error
    except UNREACHABLE as error:
        raise TokenRefused(
            f"Nobody answers at {host}:{port} ({error}). Is `rockchipllama up --share` running there, and does a firewall "
            "let its port through?"
        ) from error
    finally:
        client.close()
    write_private(data_dir / FILE, url)
    return problems


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
