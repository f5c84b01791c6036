"""The API's listening socket: `up` opens it, so a taken port is one sentence and a restarted API loses no client."""

from __future__ import annotations

import errno
import socket

from ops.up.errors import PortInUse

BACKLOG = 2048
"""Connections that may wait while the API is busy or being restarted."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port` (0: any that is free). Raises `PortInUse`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PortInUse(
            f"'{host}' is no address of this machine: choose another with --host or ROCKCHIPLLAMA_HOST."
        ) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # all addresses means IPv4 too
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PortInUse(_sentence(error, host, port)) from error
    return sock


def url(sock: socket.socket) -> str:
    """Where a client on this machine finds what listens on `sock`."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _sentence(error: OSError, host: str, port: int) -> str:
    another = "choose another with --port or ROCKCHIPLLAMA_PORT"
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program; stop that one, or {another}."
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}; {another}, from 1024 on."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"'{host}' is no address of this machine; choose another with --host or ROCKCHIPLLAMA_HOST."
    return f"Port {port} on {host} cannot be listened on ({error.strerror}); {another}."
