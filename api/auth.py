"""Who may use the API: a key, or an address in a trusted network, called as this server may be called."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import Problem, Renderer, respond
from api.origins import Origins
from api.settings import ApiSettings

OPEN = frozenset({"/", "/health", "/healthz", "/readyz", "/v1/health", "/docs", "/openapi.json"})
"""What answers anybody: whether the service is up, and what it would answer."""
OPEN_BELOW = "/docs/"

OWNER = "rockchipllama.owner"
"""Under this name the scope carries who asks, for the queue's turns: never the key itself."""


class BindRefused(Exception):
    """Raised when the settings would open the API to everybody who can reach this machine."""


def check_bind(settings: ApiSettings) -> None:
    """Refuse to listen beyond loopback without keys or trusted networks. Raises `BindRefused` with the way out."""
    if settings.api_keys or settings.trusted_networks or is_loopback(settings.host):
        return
    raise BindRefused(
        f"Listening on {settings.host} would let everybody who reaches this machine use it. Set one of these first:\n"
        "  ROCKCHIPLLAMA_API_KEYS=a-long-random-word            clients send it as their API key\n"
        "  ROCKCHIPLLAMA_TRUSTED_NETWORKS=192.168.1.0/24        clients in this network need no key"
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


class Auth:
    """ASGI middleware that lets through who may pass. With neither keys nor networks set, everybody may.

    Who shows no key may do so only under the server's own names and from its own pages (`Origins`).
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings, renderer_of: Callable[[Scope], Renderer]) -> None:
        self.app = app
        self.renderer_of = renderer_of
        self._digests = [_digest(key.get_secret_value().encode()) for key in settings.api_keys]
        self._networks = [ipaddress.ip_network(word) for word in settings.trusted_networks]
        self._origins = Origins(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[OWNER] = scope["client"][0] if scope.get("client") else ""
            problem = self.refusal(scope)
            if problem is not None:
                await respond(problem, self.renderer_of(scope))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> Problem | None:
        """Why this request may not pass; None when it may."""
        path: str = scope["path"]
        if self._shows_key(scope) or path in OPEN or path.startswith(OPEN_BELOW):
            return None
        if not (self._digests or self._networks) or self._trusted(scope):
            return self._origins.refusal(scope)
        return Problem(
            401,
            "invalid_api_key",
            "This server needs an API key. Send `Authorization: Bearer KEY` with one of its keys."
            if self._digests
            else f"Your address {scope[OWNER] or '(unknown)'} is in none of this server's trusted networks, "
            "and it has no API keys.",
        )

    def _shows_key(self, scope: Scope) -> bool:
        key = _presented(scope)
        if key is not None and self._digests:
            digest = _digest(key)
            # Every digest is compared, and each in constant time: how long it takes tells nothing about any key.
            if sum(hmac.compare_digest(digest, known) for known in self._digests):
                scope[OWNER] = "key:" + digest.hex()[:16]
                return True
        return False

    def _trusted(self, scope: Scope) -> bool:
        if not self._networks or not scope.get("client"):
            return False
        try:
            address = ipaddress.ip_address(scope["client"][0].partition("%")[0])
        except ValueError:
            return False
        # A socket that listens on both families shows an IPv4 client in IPv6 clothes.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


def _presented(scope: Scope) -> bytes | None:
    plain: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip()
        if name == b"x-api-key":
            plain = bytes(value).strip()
    return plain


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
