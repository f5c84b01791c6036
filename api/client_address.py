"""From which address a request comes, through proxies that are trusted to tell."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.types import Scope


def in_networks(address: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether a client's address lies in one of these networks; false for what is no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    # A socket that listens on both families shows an IPv4 client in IPv6 clothes.
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found in network for network in networks)


class ClientAddress:
    """Finds the client behind the proxies of these networks, which name it in `X-Forwarded-For`.

    Each proxy adds whoever called it at the end of that header, so it is read from there: the first address that is no
    trusted proxy is the client. What stands before it anybody may have written. A header from elsewhere is not looked at.
    """

    def __init__(self, proxies: Sequence[str]) -> None:
        self._proxies = [ipaddress.ip_network(word) for word in proxies]

    def of(self, scope: Scope) -> str:
        """The address; empty where the connection has none, as a Unix socket."""
        address: str = scope["client"][0] if scope.get("client") else ""
        if not self._proxies or not in_networks(address, self._proxies):
            return address
        lines = [str(value, "latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for hop in reversed([word.strip() for line in lines for word in line.split(",")]):
            try:
                ipaddress.ip_address(hop.partition("%")[0])
            except ValueError:
                break  # a proxy that hides addresses, or another form of them
            address = hop
            if not in_networks(hop, self._proxies):
                break
        return address
