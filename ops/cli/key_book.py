"""The API keys of a service, where they are looked after: over HTTP, or in its Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ops.cli import queue_of_service

if TYPE_CHECKING:
    from redis import Redis

    from tasks.limits import Limits


class KeyBook(Protocol):
    """Keys as `/v1/keys` shows them."""

    def keys(self) -> list[dict[str, Any]]: ...

    def create_key(self, name: str, scopes: Sequence[str], limits: dict[str, int]) -> dict[str, Any]: ...

    def limit_key(self, name: str, limits: dict[str, int]) -> dict[str, Any]: ...

    def revoke_key(self, name: str) -> dict[str, Any]: ...


class InRedis:
    """Those of the service that runs here, or whose Redis the settings name. Raises `KeyRefused` and `QueueAway`."""

    def __init__(self) -> None:
        self._client = _connect()

    def keys(self) -> list[dict[str, Any]]:
        """All of them."""
        from tasks import api_keys

        return [_shown(key) for key in api_keys.listing(self._client)]

    def create_key(self, name: str, scopes: Sequence[str], limits: dict[str, int]) -> dict[str, Any]:
        """Make one; what it is, with the `key` itself."""
        from tasks import api_keys

        key, plain = api_keys.create(self._client, name, [api_keys.Scope(word) for word in scopes], _limits(limits))
        return {**_shown(key), "key": plain}

    def limit_key(self, name: str, limits: dict[str, int]) -> dict[str, Any]:
        """Let it ask for so much from now on; what it is."""
        from tasks import api_keys

        return _shown(api_keys.limit(self._client, name, _limits(limits)))

    def revoke_key(self, name: str) -> dict[str, Any]:
        """Make it useless; what it was."""
        from tasks import api_keys

        return _shown(api_keys.revoke(self._client, name))


def _connect() -> Redis:
    from redis.exceptions import NoPermissionError

    from tasks import keys
    from tasks.api_keys import KeyRefused

    client = queue_of_service.connect()
    try:
        client.exists(keys.API_KEYS)
    except NoPermissionError as error:
        raise KeyRefused(
            "API keys are made, listed and revoked where the service runs, or from elsewhere with --url and an "
            "administrator's key; this machine is a board of it and no more."
        ) from error
    return client


def _limits(limits: dict[str, int]) -> Limits | None:
    from tasks.limits import Limits

    return Limits(**limits) if limits else None


def _shown(key: object) -> dict[str, Any]:
    from msgspec.structs import asdict

    from tasks.api_keys import ApiKey

    assert isinstance(key, ApiKey)
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created": key.created,
        "limits": asdict(key.limits) if key.limits is not None else None,
    }
