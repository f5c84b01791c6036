"""The API's listening socket: `up` opens it, so a taken port is one sentence and a restarted API loses no client."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from ops.up.errors import PortInUse

BACKLOG = 2048
"""Connections that may wait while the API is busy or being restarted."""


ANYWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of nobody, reserved for documentation: which of ours would be used to reach them is asked of the kernel."""


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The family and the address that `host` and `port` mean; of a name that has both kinds, such as localhost, the one of IPv4,
    which all clients reach. Raises `PortInUse`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PortInUse(
            f"'{host}' is neither an address nor a name that is known here. Choose another with --host or "
            "ROCKCHIPLLAMA_HOST: 127.0.0.1 is this machine alone, 0.0.0.0 is every network it is in."
        ) from error
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, address


def listen(host: str, port: int, setting: str = "") -> socket.socket:
    """A socket that listens on `host` and `port` (0: any that is free). Raises `PortInUse`, which names the settings that have
    `setting` before `host` and `port`."""
    family, address = resolve(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # all addresses means IPv4 too
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PortInUse(_sentence(error, host, port, f"ROCKCHIPLLAMA_{setting.upper()}")) from error
    return sock


def url(sock: socket.socket) -> str:
    """Where a client on this machine finds what listens on `sock`."""
    host, port = sock.getsockname()[:2]
    return _url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


def network_url(sock: socket.socket) -> str:
    """Where a client on another machine finds it; the same as `url` when it listens on one address, or is in no network."""
    host, port = sock.getsockname()[:2]
    address = network_address(host)
    return url(sock) if address == host else _url(address, port)


def network_address(host: str) -> str:
    """The address under which other machines find what listens on `host`; `host` itself when that is one, or in no network."""
    if host not in ("0.0.0.0", "::"):
        return host
    families = [socket.AF_INET, socket.AF_INET6] if host == "::" else [socket.AF_INET]
    for found in (*map(_towards_others, families), *(next(_own_addresses(family), None) for family in families)):
        if found is not None:
            return found
    return host


def _towards_others(family: socket.AddressFamily) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((ANYWHERE[family], 9))  # of a datagram socket this sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _own_addresses(family: socket.AddressFamily) -> Iterator[str]:
    """Those of this machine in networks that lead nowhere else; what is no device, such as Docker's bridge, comes last. Those of
    one interface alone (`fe80::`) are none: another machine would have to know by which of its own it reaches them."""
    up = [name for name, state in psutil.net_if_stats().items() if state.isup]
    addresses = psutil.net_if_addrs()
    for name in sorted(up, key=lambda name: (not Path("/sys/class/net", name, "device").exists(), name)):
        for each in addresses.get(name, ()):
            address = ipaddress.ip_address(each.address) if each.family == family else None
            if address is not None and not address.is_loopback and not (address.version == 6 and address.is_link_local):
                yield each.address


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _sentence(error: OSError, host: str, port: int, prefix: str) -> str:
    another = f"choose another with --port or {prefix}PORT"
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program; stop that one, or {another}."
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}; {another}, from 1024 on."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"'{host}' is no address of this machine; choose another with --host or {prefix}HOST."
    return f"Port {port} on {host} cannot be listened on ({error.strerror}); {another}."
