"""The boards of the service: looked at by everybody, drained and resumed by administrators."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api.auth import require, who
from api.body import read_body
from api.delivery import while_connected
from api.docs_page import takes
from api.needs import services_of
from tasks.api_keys import Scope
from tasks.boards import overview

log = logging.getLogger("rockchipllama.api")

router = APIRouter(prefix="/v1/boards", tags=["Boards"])


@router.get("", summary="List the boards")
async def list_boards(http: Request) -> Response:
    """Each living board: its chip, driver, load, temperature, memory and version, and its models with their engines and the
    speeds that were lately measured. Null is what a board does not tell."""
    roster = services_of(http)["roster"]
    if not roster.snapshot.breaths:
        await roster.refresh()  # none known yet is not the same as none there: says so while Redis is away
    return _json({"object": "list", "data": overview(roster.snapshot)})


@router.post("/{board:path}/drain", summary="Take a board out of service")
async def drain(http: Request, board: str) -> Response:
    """It hands over what it is at and serves nothing, until it is resumed; also when it is started anew. It obeys within about
    two seconds. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    services = services_of(http)
    await services["boards"].drain(board)
    await services["roster"].refresh()  # nothing is accepted any more that would wait for it
    log.info("%s drained the board '%s'", await who(http), board)
    return _json({"object": "board", "id": board, "drained": True})


@router.post("/{board:path}/resume", summary="Let a drained board serve again")
async def resume(http: Request, board: str) -> Response:
    """It loads what it had loaded before. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    await services_of(http)["boards"].resume(board)
    log.info("%s let the board '%s' serve again", await who(http), board)
    return _json({"object": "board", "id": board, "drained": False})


@router.delete("/{board:path}", summary="Forget a board that has gone")
async def forget(http: Request, board: str) -> Response:
    """Its models are known no more, unless others have them. One that is there is not forgotten. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    await services_of(http)["boards"].forget(board)
    log.info("%s had the board '%s' forgotten", await who(http), board)
    return _json({"object": "board.deleted", "id": board, "deleted": True})


class RuntimeBody(BaseModel):
    """A release of the NPU's runtime to use from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: str = Field(max_length=40, description="One that is installed on the board, such as 1.2.3.")
    model: str = Field("", max_length=512, description="What to try it with; else what is loaded, else the smallest.")


SHAPES = (RuntimeBody,)


@router.post("/{board:path}/runtime", summary="Change the NPU's runtime", openapi_extra=takes(RuntimeBody))
async def use_runtime(http: Request, board: str) -> Response:
    """Its models are unloaded, tried with that release, and loaded again; with the old one where one of them cannot be used.
    Jobs wait meanwhile. Answered when that is done, which takes minutes. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    body = await read_body(http, RuntimeBody)
    log.info("%s changes the runtime of the board '%s' to %s", await who(http), board, body.version)
    done = await while_connected(http, services_of(http)["runtimes"].use(board, body.version, body.model))
    return _json({"object": "board.runtime", "id": board, **msgspec.to_builtins(done)})


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), headers={"cache-control": "no-store"}, media_type="application/json")
