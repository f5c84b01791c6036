"""From which pages and under which names the API may be called without a key.

A browser sends what any page tells it to, to this machine as well. A page of another site is known by its `Origin`. One
that points its own name at this machine (DNS rebinding) passes for the same site, and is known by that name in `Host`.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from api.errors import Problem, Renderer, respond
from api.settings import ApiSettings
from tasks.settings import PREFIX

LOCAL_ORIGINS = r"(?:https?|tauri|app|vscode-webview)://(?:[a-z0-9-]+\.)?(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?"
"""Pages and desktop applications of this machine."""

PRIVATE_NAMES = (".localhost", ".internal")
"""Ends of names that no public DNS answers, so no page of another site has one. Containers call their host by the second."""

EXPOSED = (
    *(
        "x-request-id",
        "x-job-id",
        "x-queue-position",
        "x-queue-wait",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
    ),
    *("openai-version", "openai-processing-ms", "x-stream-grace", "x-tools-left-out"),
    *("request-id", "anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining"),
    *("anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    *("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
)
"""Headers of an answer that pages may read."""

_LOCAL = re.compile(LOCAL_ORIGINS)


class Cors(CORSMiddleware):
    """ASGI middleware that tells browsers which pages may read answers."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, render: Renderer) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_origin_regex=LOCAL_ORIGINS,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            # Browser builds of the official clients send a dozen x-stainless-* headers of their own.
            allow_headers=["*"],
            # Those clients decide by them whether and when to try again, and browsers hide what is not named.
            expose_headers=EXPOSED,
            # A page on the internet that is allowed to call this server usually finds it in a private network.
            allow_private_network=True,
            max_age=600,
        )
        self._render = render

    def preflight_response(self, request_headers: Headers) -> Response:
        """What a browser asks before it lets a page call. Whoever looks there for the reason finds it in the body."""
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        if not self.is_allowed_origin(origin):
            return respond(_foreign(origin), self._render)
        if method not in self.allow_methods:
            allowed = ", ".join(self.allow_methods)
            message = f"{method[:20]} is not allowed here; allowed: {allowed}."
            return respond(Problem(405, "method_not_allowed", message, allow=allowed), self._render)
        return super().preflight_response(request_headers)


def _foreign(origin: str) -> Problem:
    return Problem(
        403,
        "origin_not_allowed",
        f"Pages of '{origin[:100]}' may not call this server. If they should, add that origin to {PREFIX}CORS_ORIGINS.",
    )


class Origins:
    """Who calls, as far as its own headers tell."""

    def __init__(self, settings: ApiSettings) -> None:
        machine = socket.gethostname().lower()
        self._names = {settings.host.lower(), machine, f"{machine}.local", f"{machine.partition('.')[0]}.local"}
        self._names.update(settings.allowed_hosts)
        self._origins = frozenset(settings.cors_origins)

    def knows(self, host: str) -> bool:
        """Whether no page of another site goes by that name: the value of `Host`."""
        name = _name(host.lower())
        # A name without a dot is of the network at hand, such as a container's; no public DNS has any.
        if "*" in self._names or name in self._names or "." not in name or name.endswith(PRIVATE_NAMES):
            return True
        return _is_address(name)

    def refusal(self, scope: Scope) -> Problem | None:
        """Why this request needs a key; None when it needs none. Clients that are no browsers send no `Origin`."""
        hosts = [str(value, "latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        for host in hosts:
            if not self.knows(host):
                return Problem(
                    403,
                    "host_not_allowed",
                    f"This server does not go by the name '{_name(host)[:100]}', and a request without an API key must name "
                    f"it rightly. Call it by its address, or add that name to {PREFIX}ALLOWED_HOSTS.",
                )
        for name, value in scope["headers"]:
            if name == b"origin" and not self._may_call(origin := str(value, "latin-1"), hosts):
                return _foreign(origin)
        return None

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
