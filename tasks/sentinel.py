"""A Redis that is found through Sentinel: how it is named, and how clients are made of that.

redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/MASTER[/DATABASE][?sentinel_username=...&sentinel_password=...]

User and password are those of Redis; those of the Sentinels come behind, where they have any.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEME = "redis+sentinel"
PORT = 26379
_MASTER = re.compile(r"[\w.-]+")
_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Where Sentinels are, and which master they are asked for."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    database: int
    username: str | None
    password: str | None
    access: dict[str, str]
    """User and password of the Sentinels themselves, as a client takes them."""


def named_by(url: str) -> Sentinels | None:
    """Those that a URL names; None for a URL of another scheme. Raises `ValueError`."""
    return parse(url) if url.startswith(f"{SCHEME}://") else None


def parse(url: str) -> Sentinels:
    """What a URL of this scheme says. Raises `ValueError` with what it must have; nothing of it is repeated."""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    master, _, database = parts.path.strip("/").partition("/")
    if _MASTER.fullmatch(master) is None:
        raise ValueError("behind the hosts it must name the master, as in redis+sentinel://10.0.0.1,10.0.0.2/mymaster")
    if database and not database.isdecimal():
        raise ValueError("behind the master's name only the number of a database may follow")
    options = dict(parse_qsl(parts.query))
    if unknown := options.keys() - _OPTIONS.keys():
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be set there; {' and '.join(_OPTIONS)} can")
    return Sentinels(
        hosts=tuple(map(_host, hosts.split(","))),
        master=master,
        database=int(database or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        access={_OPTIONS[name]: value for name, value in options.items()},
    )


def _host(word: str) -> tuple[str, int]:
    try:
        found = urlsplit(f"//{word}")
        host, port = found.hostname, found.port or PORT
    except ValueError:
        raise ValueError("each port must be a number up to 65535, as in 10.0.0.1:26379") from None
    if not host:
        raise ValueError("it must name the hosts of the Sentinels, with commas between")
    return host, port


def client_options(sentinels: Sentinels) -> dict[str, Any]:
    """What a client of the master is made with, beside its time-outs."""
    return {"db": sentinels.database, "username": sentinels.username, "password": sentinels.password}
