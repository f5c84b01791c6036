"""Whether the service is up and what it serves, for machines; and what `/` is, by who asks."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from api.console_page import page
from api.needs import services_of, settings_of
from tasks.errors import QueueUnavailable, TasksError
from tasks.roster import ModelStatus
from tasks.settings import PREFIX
from tasks.version import VERSION

router = APIRouter(tags=["Health"])

PING_SECONDS = 1.0
"""How long Redis may take to answer a probe before it counts as gone."""


@router.get("/healthz", summary="Is the process up?")
async def healthz(http: Request) -> Response:
    """The process answers; nothing else is asked."""
    return _json({"status": "ok"})


@router.get("/readyz", summary="Can it answer?")
async def readyz(http: Request) -> Response:
    """Redis answers and at least one model is served, else 503 with the reasons."""
    return _json_or_503(await _readiness(http))


@router.get("/health", include_in_schema=False)
@router.get("/v1/health", summary="Can it answer, and with which models?")
async def health(http: Request) -> Response:
    """Readiness, with the models, and whether clients must show a key."""
    ready = await _readiness(http)
    models = [_model(status) for status in services_of(http)["roster"].models()]
    return _json_or_503(ready | {"version": VERSION, "needs_key": await _needs_key(http), "models": models})


@router.get("/", include_in_schema=False)
async def root(http: Request) -> Response:
    """The console for browsers, service information for JSON clients, and for all others the words Ollama's clients look for."""
    accept = http.headers.get("accept", "")
    # Asked of this path, `*/*` comes from tools that only test whether somebody is there.
    if "text/html" in accept:
        return page(http)
    if "application/json" in accept:
        models = [_model(status) for status in services_of(http)["roster"].models()]
        about = {
            "name": "RockchipLlama",
            "version": VERSION,
            "models": models,
            "docs": "/docs",
            "openapi": "/openapi.json",
        }
        return _json(about, headers={"vary": "accept"})
    return PlainTextResponse("Ollama is running", headers={"vary": "accept"})


async def _readiness(http: Request) -> dict[str, Any]:
    services = services_of(http)
    reasons: list[str] = []
    try:
        await asyncio.wait_for(services["ping"](), PING_SECONDS)
    except TasksError as error:
        reasons.append(str(error))
    except TimeoutError:
        reasons.append(f"Redis did not answer within {PING_SECONDS:g} s.")
    models = services["roster"].models()
    if not models:
        reasons.append(f"No model is known: no board is running, or {PREFIX}MODELS_DIR holds no model.")
    elif not any(status.served or status.boards for status in models) and (
        drained := sorted(each.board for each in services["roster"].snapshot.breaths if each.drained)
    ):
        reasons.append(
            f"No model is served: {', '.join(drained)} {'is' if len(drained) == 1 else 'are'} drained; "
            f"`rockchipllama boards resume {drained[0]}` ends that."
        )
    elif not any(status.served or status.boards for status in models):
        reasons.append("No model is served: the boards that announced models are not running.")
    return {"status": "unavailable", "reasons": reasons} if reasons else {"status": "ok"}


async def _needs_key(http: Request) -> bool:
    if settings_of(http).api_keys:
        return True
    try:
        return bool(await services_of(http)["api_keys"].known())
    except QueueUnavailable:
        return False  # nor is anything else answered now


def _model(status: ModelStatus) -> dict[str, Any]:
    return {
        "id": status.card.id,
        "engine": status.card.engine_version or status.card.engine,
        "context_length": status.card.context_length,
        "served": status.served,
        "loaded": status.loaded,
        "loading": status.loading,
        "waiting": status.waiting,
        "queue": status.gate.value,
        "capabilities": status.capabilities,
    }


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _json_or_503(value: dict[str, Any]) -> Response:
    if value["status"] == "ok":
        return _json(value)
    return _json(value, 503, {"retry-after": "5"})
