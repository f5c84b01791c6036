"""From which pages and under which names the API may be called without a key.

A browser sends what any page tells it to, to this machine as well. A page of another site is known by its `Origin`. One
that points its own name at this machine (DNS rebinding) passes for the same site, and is known by that name in `Host`.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.types import Scope

from api.errors import Problem
from api.settings import ApiSettings
from tasks.settings import PREFIX

LOCAL_ORIGINS = r"(?:https?|tauri|app|vscode-webview)://(?:[a-z0-9-]+\.)?(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?"
"""Pages and desktop applications of this machine."""

PRIVATE_NAMES = (".localhost", ".internal")
"""Ends of names that no public DNS answers, so no page of another site has one. Containers call their host by the second."""

_LOCAL = re.compile(LOCAL_ORIGINS)


class Origins:
    """Who calls, as far as its own headers tell."""

    def __init__(self, settings: ApiSettings) -> None:
        machine = socket.gethostname().lower()
        self._names = {settings.host.lower(), machine, f"{machine}.local", f"{machine.partition('.')[0]}.local"}
        self._names.update(settings.allowed_hosts)
        self._origins = frozenset(settings.cors_origins)

    def refusal(self, scope: Scope) -> Problem | None:
        """Why this request needs a key; None when it needs none. Clients that are no browsers send no `Origin`."""
        hosts = [str(value, "latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        for host in hosts:
            if not self._is_ours(host):
                return Problem(
                    403,
                    "host_not_allowed",
                    f"This server does not go by the name '{_name(host)[:100]}', and a request without an API key must name "
                    f"it rightly. Call it by its address, or add that name to {PREFIX}ALLOWED_HOSTS.",
                )
        for name, value in scope["headers"]:
            if name == b"origin" and not self._may_call(origin := str(value, "latin-1"), hosts):
                return Problem(
                    403,
                    "origin_not_allowed",
                    f"Pages of '{origin[:100]}' may not call this server without an API key. If they should, add that origin "
                    f"to {PREFIX}CORS_ORIGINS.",
                )
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        # A name without a dot is of the network at hand, such as a container's; no public DNS has any.
        if "*" in self._names or name in self._names or "." not in name or name.endswith(PRIVATE_NAMES):
            return True
        return _is_address(name)

    def _may_call(self, origin: str, hosts: list[str]) -> bool:
        if "*" in self._origins or origin in self._origins or _LOCAL.fullmatch(origin):
            return True
        # A page that this very server has sent. A proxy in front may have changed the scheme.
        return origin.lower().partition("://")[2] in hosts


def _name(host: str) -> str:
    """The host without its port, and without the dot that may end a whole name."""
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
