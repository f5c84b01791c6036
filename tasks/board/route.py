"""How boards reach each other: by the addresses from which they reach the Redis of the service."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

_PORT = 9
"""Of nobody: over a datagram socket nothing is sent there."""


def redis_host(url: str) -> str | None:
    """The machine of the Redis at `url`; None when that is this one, or one of several."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or parts.hostname is None or parts.hostname == "localhost":
        return None
    try:
        if ipaddress.ip_address(parts.hostname).is_loopback:
            return None
    except ValueError:
        pass  # a name
    return parts.hostname


def address_towards(host: str) -> str:
    """The address of this machine from which it reaches another. Raises `OSError` when there is no way there."""
    family, kind, _, _, address = socket.getaddrinfo(host, _PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
