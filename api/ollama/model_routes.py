"""The routes of the Ollama front that tell of the server and its models."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.body import read_body
from api.errors import HttpProblem, Problem
from api.json_response import json_response
from api.needs import roster_of, services_of
from api.ollama.problems import named
from api.ollama.routes import takes
from api.ollama.schemas import ShowBody
from api.ollama.translate import models
from api.texts import ask_board
from tasks.commands import Describe, Description
from tasks.version import VERSION

router = APIRouter(tags=["Ollama"])

OLLAMA_VERSION = "0.13.5"
"""The release of Ollama whose API this is; clients go by it when they choose what to ask for."""


@router.get("/api/version", summary="Which API this is")
async def version(http: Request) -> Response:
    """The version of Ollama's API, and of this server."""
    return json_response({"version": OLLAMA_VERSION, "rockchipllama": VERSION})


@router.get("/api/status", include_in_schema=False)
async def status(http: Request) -> Response:
    """Nothing here is in anybody's cloud."""
    return json_response({"cloud": {"disabled": True, "source": "config"}})


@router.get("/api/tags", summary="List the models")
async def tags(http: Request) -> Response:
    """Every model that a board has announced, alone and with each of its adapters, the newest first."""
    known = sorted((await roster_of(http)).models(), key=lambda each: -each.card.created)
    return json_response({"models": [models.listed(each) for one in known for each in (one, *one.adapted())]})


@router.get("/api/ps", summary="List the loaded models")
async def ps(http: Request) -> Response:
    """Every model that is loaded, the one that stays longest first."""
    roster = services_of(http)["roster"]
    await roster.refresh()  # a model that was just loaded or unloaded is what is asked for here
    loaded = [each for each in roster.models() if each.loaded]
    longest = sorted(loaded, key=lambda each: float("inf") if each.stays is None else each.stays, reverse=True)
    return json_response({"models": [models.running(each) for each in longest]})


@router.post("/api/show", summary="Show a model", openapi_extra=takes(ShowBody))
async def show(http: Request) -> Response:
    """What is known of one model."""
    body = await read_body(http, ShowBody)
    status = await named(http, body.called)
    _, said = await ask_board(http, status.card.id, Describe, Description)
    return json_response(models.shown(status, said, body.called))


@router.post("/api/push", include_in_schema=False)
@router.post("/api/me", include_in_schema=False)
@router.post("/api/signout", include_in_schema=False)
async def elsewhere(http: Request) -> Response:
    """What needs an account with somebody."""
    raise HttpProblem(
        Problem(501, "not_offered", f"{http.url.path} is not offered: this server has no account with anybody")
    )
