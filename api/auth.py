"""Who may use the API, and for what: a key, or an address in a trusted network, called as this server may be called."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import cast

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.client_address import ClientAddress, in_networks
from api.console_page import BELOW
from api.errors import HttpProblem, Problem, Renderer, of_error, respond
from api.needs import Services, services_of
from api.origins import Origins
from api.settings import ApiSettings
from tasks.api_keys import EVERY_SCOPE, ApiKey, digest_of
from tasks.api_keys import Scope as KeyScope
from tasks.errors import QueueUnavailable
from tasks.limits import Limits

OPEN = frozenset({"/", "/health", "/healthz", "/readyz", "/v1/health", "/api/version", "/docs", "/openapi.json"})
"""What answers anybody: whether the service is up, and what it would answer."""
OPEN_BELOW = ("/docs/", BELOW)

OWNER = "rockchipllama.owner"
"""Under this name the scope carries who asks, for the queue's turns: never the key itself."""
ALLOWED = "rockchipllama.allowed"
"""Under this name it carries the scopes that whoever asks has."""

TRUSTED = frozenset({KeyScope.INFERENCE, KeyScope.BATCH})
"""What clients in trusted networks may do without a key, and anybody while there are neither keys nor networks."""


LIMITS = "rockchipllama.limits"
"""Under this name the limits of its key, where it has any."""


class BindRefused(Exception):
    """Raised when the settings would open the API to everybody who can reach this machine."""


def check_bind(settings: ApiSettings, *, keys: bool = False) -> None:
    """Refuse to listen beyond loopback without keys or trusted networks. `keys`: some were made (`rockchipllama keys`).

    Raises `BindRefused` with the way out.
    """
    if keys or settings.api_keys or settings.trusted_networks or is_loopback(settings.host):
        return
    raise BindRefused(
        f"Listening on {settings.host} would let everybody who reaches this machine use it. Set one of these first:\n"
        "  ROCKCHIPLLAMA_API_KEYS=a-long-random-word            clients send it as their API key\n"
        "  ROCKCHIPLLAMA_TRUSTED_NETWORKS=192.168.1.0/24        clients in this network need no key\n"
        "or make a key while the service runs on this machine alone: `rockchipllama keys create NAME`"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def owner_of(http: Request) -> str:
    """Who asks, as the queue tells its clients apart."""
    return str(http.scope.get(OWNER, ""))


async def who(http: Request) -> str:
    """The same for the log: by the name of its key where it has one."""
    owner = owner_of(http)
    for digest, key in (await services_of(http)["api_keys"].known()).items():
        if owner == f"key:{digest[:16]}":
            return f"key '{key.name}'"
    return owner


def limits_of(http: Request) -> Limits | None:
    """How much whoever asks may ask for; None is without limits."""
    return cast("Limits | None", http.scope.get(LIMITS))


def may(http: Request, needed: KeyScope) -> bool:
    """Whether whoever asks has this scope."""
    return needed in http.scope[ALLOWED]


def require(http: Request, needed: KeyScope) -> None:
    """Refuse whoever may not do this. Raises `HttpProblem`."""
    if not may(http, needed):
        raise HttpProblem(_missing(needed, http.scope[OWNER]))


class Auth:
    """ASGI middleware that lets through who may pass. With neither keys nor networks, everybody may who reaches an address of
    this machine alone; on a wider one nobody, since its last key may be revoked while it listens, or forgotten by Redis.

    Keys come from the settings, which have every scope, and from `rockchipllama keys`. Who shows none may pass only under
    the server's own names and from its own pages (`Origins`).
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings, renderer_of: Callable[[Scope], Renderer]) -> None:
        self.app = app
        self.renderer_of = renderer_of
        self._local = is_loopback(settings.host)
        self._settled = frozenset(digest_of(key.get_secret_value().encode()) for key in settings.api_keys)
        self._networks = [ipaddress.ip_network(word) for word in settings.trusted_networks]
        self._address = ClientAddress(settings.trusted_proxies)
        self._origins = Origins(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[OWNER] = self._address.of(scope)
            scope[ALLOWED] = frozenset()
            problem = None if _is_open(scope["path"]) else await self._refusal(scope)
            if problem is not None:
                await respond(problem, self.renderer_of(scope))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Problem | None:
        shown = _presented(scope)
        digest = digest_of(shown) if shown else None
        if digest in self._settled:
            made: dict[str, ApiKey] = {}
        else:
            try:
                made = await cast(Services, scope["state"])["api_keys"].known()
            except QueueUnavailable as error:
                return of_error(error)
        return self.refusal(scope, digest, made)

    def refusal(self, scope: Scope, digest: str | None, made: dict[str, ApiKey]) -> Problem | None:
        """Why this request may not pass; None when it may, and then the scope says who asks and what that one may do.

        Keys are looked up by their digests: how long that takes tells of a digest, from which nobody can get to a key.
        """
        if digest is not None and (digest in self._settled or digest in made):
            scope[OWNER] = "key:" + digest[:16]
            scope[ALLOWED] = EVERY_SCOPE if digest in self._settled else made[digest].scopes
            scope[LIMITS] = None if digest in self._settled else made[digest].limits
            return None
        keys = bool(self._settled or made)
        if not (keys or self._networks) and self._local:
            scope[ALLOWED] = EVERY_SCOPE if is_loopback(scope[OWNER]) else TRUSTED
            return self._origins.refusal(scope)
        if in_networks(scope[OWNER], self._networks):
            scope[ALLOWED] = TRUSTED
            return self._origins.refusal(scope)
        return Problem(
            401,
            "invalid_api_key",
            "This server does not know the API key that was sent. Send `Authorization: Bearer KEY` with one of its keys."
            if keys and digest is not None
            else "This server needs an API key. Send `Authorization: Bearer KEY` with one of its keys."
            if keys
            else "This server listens beyond its machine and has no API key left, so it lets nobody in. Make one there: "
            "`rockchipllama keys create NAME`."
            if not self._networks
            else f"Your address {scope[OWNER] or '(unknown)'} is in none of this server's trusted networks, "
            "and it has no API keys.",
        )


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def _missing(needed: KeyScope, owner: str) -> Problem:
    who = "Your API key" if owner.startswith("key:") else "Without an API key you"
    return Problem(
        403,
        "insufficient_permissions",
        f"{who} may not do this: it needs a key with the scope '{needed}' "
        f"(`rockchipllama keys create NAME --scope {needed}`, typed on the service's machine).",
        retry=False,
    )


def _presented(scope: Scope) -> bytes | None:
    plain: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip()
        if name == b"x-api-key":
            plain = bytes(value).strip()
    return plain
