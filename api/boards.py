"""The boards of the service."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.needs import services_of
from tasks.boards import overview

router = APIRouter(prefix="/v1/boards", tags=["Boards"])


@router.get("", summary="List the boards")
async def list_boards(http: Request) -> Response:
    """Each living board: its chip, driver, load, temperature, memory and version, and its models with their engines and the
    speeds that were lately measured. Null is what a board does not tell."""
    roster = services_of(http)["roster"]
    if not roster.snapshot.breaths:
        await roster.refresh()  # none known yet is not the same as none there: says so while Redis is away
    shown = {"object": "list", "data": overview(roster.snapshot)}
    return Response(msgspec.json.encode(shown), headers={"cache-control": "no-store"}, media_type="application/json")
