"""API keys, for administrators: listed, made, limited, revoked. The first one is made where the service runs."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from msgspec.structs import asdict
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api.auth import require
from api.body import read_body
from api.docs_page import takes
from api.errors import HttpProblem, Problem
from api.needs import services_of
from tasks.api_keys import ApiKey, KeyRefused, Scope
from tasks.limits import Limits

router = APIRouter(prefix="/v1/keys", tags=["Keys"])


class LimitsBody(BaseModel):
    """The most that a key may ask for; null is no limit."""

    # A limit that is misspelt, or left out by mistake, would be none.
    model_config = ConfigDict(extra="forbid", strict=True)

    requests: int | None = Field(None, ge=1, le=10**9, description="In a minute.")
    tokens: int | None = Field(None, ge=1, le=10**9, description="In a minute, of prompts and answers.")
    jobs: int | None = Field(None, ge=1, le=10**9, description="At once, waiting or running.")

    def limits(self) -> Limits | None:
        """None where nothing is limited."""
        given = self.model_dump(exclude_none=True)
        return Limits(**given) if given else None


class KeyBody(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Whose key it is, such as open-webui.")
    scopes: list[Scope] = Field([Scope.INFERENCE, Scope.BATCH], description="What it allows.")
    limits: LimitsBody = LimitsBody()


SHAPES = (KeyBody, LimitsBody)


@router.get("", summary="List API keys")
async def list_keys(http: Request) -> Response:
    """Those that were made, the oldest first; never the keys themselves. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    found = sorted((await services_of(http)["api_keys"].known()).values(), key=lambda key: key.created)
    return _json({"object": "list", "data": [_shown(key) for key in found]})


@router.post("", summary="Make an API key", openapi_extra=takes(KeyBody))
async def create_key(http: Request) -> Response:
    """The answer is the only one that has the `key` itself. Other API processes know it within two seconds. Needs the scope
    `admin`."""
    require(http, Scope.ADMIN)
    body = await read_body(http, KeyBody)
    try:
        key, plain = await services_of(http)["api_keys"].create(body.name, body.scopes, body.limits.limits())
    except KeyRefused as error:
        if not error.usage:
            raise HttpProblem(Problem(409, "key_exists", str(error), "name", retry=False)) from error
        raise HttpProblem(Problem(400, "invalid_value", str(error), "scopes" if not body.scopes else "name")) from error
    return _json({**_shown(key), "key": plain})


@router.patch("/{name:path}", summary="Limit an API key", openapi_extra=takes(LimitsBody))
async def limit_key(http: Request, name: str) -> Response:
    """By its name or id: it may ask for so much from now on; what is left out is not limited. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    body = await read_body(http, LimitsBody)
    try:
        return _json(_shown(await services_of(http)["api_keys"].limit(name, body.limits())))
    except KeyRefused as error:
        raise _missing(error) from error


@router.delete("/{name:path}", summary="Revoke an API key")
async def revoke_key(http: Request, name: str) -> Response:
    """By its name or id: it opens nothing any more, within two seconds; jobs that it began run on. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    try:
        return _json({**_shown(await services_of(http)["api_keys"].revoke(name)), "deleted": True})
    except KeyRefused as error:
        raise _missing(error) from error


def _missing(error: KeyRefused) -> HttpProblem:
    return HttpProblem(Problem(404, "key_not_found", str(error), "name"))


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created": key.created,
        "limits": asdict(key.limits) if key.limits is not None else None,
    }


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), headers={"cache-control": "no-store"}, media_type="application/json")
