"""Which models boards could load and have loaded, and for administrators: loading and unloading them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api.auth import require
from api.body import read_body
from api.delivery import while_connected
from api.docs_page import takes
from api.errors import invalid
from api.keep_alive import KeepAlive
from api.needs import roster_of, services_of
from tasks import residence
from tasks.api_keys import Scope
from tasks.errors import BoardUnknown

router = APIRouter(prefix="/v1/models", tags=["Models"])

ANY = "any"
"""Instead of a board's name: whichever suits."""


class UnloadBody(BaseModel):
    """A model to be unloaded."""

    # A board that is misspelt, or left out by mistake, would be all of them.
    model_config = ConfigDict(extra="forbid", strict=True)

    # An empty one would be the default model.
    model: str = Field(min_length=1, max_length=512, description="Its id, or another of its names.")
    board: str = Field(ANY, max_length=512, description="The board's name; `any` is every one that has it loaded.")


class LoadBody(UnloadBody):
    """A model to be loaded."""

    board: str = Field(ANY, max_length=512, description="The board's name; `any` is the one where it suits best.")
    keep_alive: KeepAlive = Field(
        None,
        description="Seconds it stays after this and after its last job, or a duration such as 5m; below 0 it stays for ever.",
    )
    wait: bool = Field(False, description="Answer once it is loaded, not once that has begun.")


SHAPES = (LoadBody, UnloadBody)


@router.get("/available", summary="List the models that boards could load")
async def available(http: Request) -> Response:
    """Every model that a board has announced, and of each board with it whether it fits there, or why not."""
    return _json({"object": "list", "data": residence.available((await roster_of(http)).snapshot)})


@router.get(
    "/loaded",
    summary="List the models that boards have loaded",
    openapi_extra={
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": {"type": "string"},
                "description": "Only this one.",
            }
            for name in ("model", "board")
        ]
    },
)
async def loaded(http: Request) -> Response:
    """Each model that has a worker on a board: how it is, since when, its memory, and how long it stays."""
    asked = dict(http.query_params)
    model, board = asked.pop("model", None), asked.pop("board", None)
    for name in asked:
        raise invalid(f"Unknown parameter '{name[:40]}': there are model and board.", name[:40])
    roster = services_of(http)["roster"]
    await roster.refresh()  # a model that was just loaded or unloaded is what is asked for here
    wanted = roster.resolve(model).card.id if model is not None else None
    living = sorted(breath.board for breath in roster.snapshot.breaths)
    if board is not None and board not in living:
        raise BoardUnknown(board, living)
    return _json({"object": "list", "data": residence.loaded(roster.snapshot, wanted, board)})


@router.post("/load", summary="Load a model", openapi_extra=takes(LoadBody))
async def load(http: Request) -> Response:
    """Have a board load a model; others that nobody uses are unloaded there where it takes their memory. Needs the scope
    `admin`."""
    require(http, Scope.ADMIN)
    body = await read_body(http, LoadBody)
    if body.keep_alive == 0:
        raise invalid("Invalid 'keep_alive': 0 unloads a model, which POST /v1/models/unload does.", "keep_alive")
    services = services_of(http)
    board = _board(http, body)
    model, where = await while_connected(
        http, services["loading"].load(body.model, board, body.keep_alive, wait=body.wait)
    )
    state = residence.state_on(services["roster"].snapshot, model, where) or "starting"
    follow = f"/v1/models/loaded?{urlencode({'model': model, 'board': where})}"
    shown = {"object": "model.load", "id": model, "board": where, "state": state, "url": follow}
    return _json(shown, 200 if state in residence.LOADED else 202, {"location": follow})


@router.post("/unload", summary="Unload a model", openapi_extra=takes(UnloadBody))
async def unload(http: Request) -> Response:
    """Answered once it is unloaded. A job in hand waits again, and has it loaded once more. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    body = await read_body(http, UnloadBody)
    model, boards = await while_connected(http, services_of(http)["loading"].unload(body.model, _board(http, body)))
    return _json({"object": "model.unload", "id": model, "boards": boards})


def _board(http: Request, body: UnloadBody) -> str | None:
    """The board that is meant; None is any. One may be called just so."""
    called = {breath.board for breath in services_of(http)["roster"].snapshot.breaths}
    return None if body.board == ANY and ANY not in called else body.board


def _json(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(value),
        status,
        {"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )
