"""The service that this machine's board takes part in, as `rockchipllama join` keeps it in the data directory."""

from __future__ import annotations

from pathlib import Path

from ops.up.sharing import parse

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


def forget(data_dir: Path) -> bool:
    """Be no part of it any more; whether there was one."""
    try:
        (data_dir / FILE).unlink()
    except FileNotFoundError:
        return False
    return True
