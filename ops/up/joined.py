"""The service that this machine's board takes part in, as `rockchipllama join` keeps it in the data directory."""

from __future__ import annotations

from pathlib import Path

from ops.up.sharing import Token, TokenRefused, parse

FILE = "joined"


def redis_url(data_dir: Path) -> str | None:
    """The Redis of the service that was joined; None when none was. Raises `TokenRefused` when the file is damaged."""
    try:
        kept = (data_dir / FILE).read_text()
    except FileNotFoundError:
        return None
    token, host, port = parse(kept)
    return token.redis_url(host, port)


def place(data_dir: Path) -> str:
    """Where that is, host and port."""
    _, host, port = parse((data_dir / FILE).read_text())
    return f"{host}:{port}"


def knock(data_dir: Path) -> object:
    """Ask whether that lets this machine in: None when it does, else why nobody answers. Raises `TokenRefused` when it takes
    the token no more, with `usage`: to start again would change nothing."""
    from redis.exceptions import AuthenticationError  # only now: `up` asks for the rest alone

    from tasks.connection import UNREACHABLE, connect

    token, host, port = parse((data_dir / FILE).read_text())
    client = connect(token.redis_url(host, port), retries=0)
    try:
        client.ping()
    except AuthenticationError as error:
        own = "`rockchipllama join --forget` makes this machine one of its own again."
        raise TokenRefused(f"{refusal(token, host, port)} {own}", usage=True) from error
    except UNREACHABLE as error:
        return error
    finally:
        client.close()
    return None


def refusal(token: Token, host: str, port: int) -> str:
    """What to say when the service there does not take the token."""
    return (
        f"The service at {host}:{port} does not take the token '{token.name}': it was revoked or is damaged. "
        "`rockchipllama boards invite NAME`, where it runs, makes another."
    )


def forget(data_dir: Path) -> bool:
    """Be no part of it any more; whether there was one."""
    try:
        (data_dir / FILE).unlink()
    except FileNotFoundError:
        return False
    return True
