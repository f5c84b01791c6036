"""Whether the service is up and what it serves, for machines, and the page at `/` for people."""

from __future__ import annotations

import asyncio
import html
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from api.needs import services_of, settings_of
from api.try_it import try_it
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
    """A page for browsers, service information for JSON clients, and for all others the words Ollama's clients look for."""
    accept = http.headers.get("accept", "")
    # Asked of this path, `*/*` comes from tools that only test whether somebody is there.
    if "text/html" in accept:
        return HTMLResponse(_page(http), headers={"vary": "accept"})
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


def _page(http: Request) -> str:
    models = services_of(http)["roster"].models()
    rows = "".join(
        f"<tr><td><code>{html.escape(status.card.id)}</code><td>{html.escape(status.card.engine)}"
        f"<td>{status.card.context_length}<td>{_standing(status)}<td>{status.waiting}"
        for status in models
    )
    table = (
        f"<table><tr><th>Model<th>Engine<th>Context<th>State<th>Waiting{rows}</table>"
        if rows
        else "<p>No model is known yet. Start a board, and put a model into its models folder.</p>"
    )
    tried = min(models, key=lambda status: (not status.card.chats, not status.loaded), default=None)
    name, can = (tried.card.id, tried.capabilities) if tried is not None else ("MODEL", ())
    curl = try_it(str(http.base_url).rstrip("/"), name, can)
    return _PAGE.format(version=html.escape(VERSION), table=table, curl=html.escape(curl))


def _standing(status: ModelStatus) -> str:
    if status.loaded:
        return "loaded"
    if status.loading:
        return "loading"
    return "loads on demand" if status.served or status.boards else "not served now"


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>RockchipLlama</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884 }}
pre {{ padding: 1rem; background: #8882; overflow-x: auto }}
</style>
<h1>RockchipLlama {version}</h1>
{table}
<h2>Try it</h2>
<pre>{curl}</pre>
<p>The API is described at <a href="/docs">/docs</a>; readiness is at <a href="/health">/health</a>.</p>
</html>
"""
