"""The boards of the service: looked at by everybody, drained and resumed by administrators."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth import require, who
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
    await services_of(http)["boards"].drain(board)
    log.info("%s drained the board '%s'", await who(http), board)
    return _json({"object": "board", "id": board, "drained": True})


@router.post("/{board:path}/resume", summary="Let a drained board serve again")
async def resume(http: Request, board: str) -> Response:
    """It loads what it had loaded before. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    await services_of(http)["boards"].resume(board)
    log.info("%s let the board '%s' serve again", await who(http), board)
    return _json({"object": "board", "id": board, "drained": False})


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), headers={"cache-control": "no-store"}, media_type="application/json")
