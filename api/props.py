"""What the servers of llama.cpp and vLLM tell of themselves, as far as it is so here."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.needs import services_of
from tasks.version import VERSION

router = APIRouter(tags=["Models"])


@router.get("/v1/props", include_in_schema=False)
@router.get("/props", summary="A model as llama.cpp's server shows it")
async def props(http: Request) -> Response:
    """The context of a model, `?model=` or the default one, and how many requests are answered at once."""
    roster = services_of(http)["roster"]
    status = roster.resolve(http.query_params.get("model"))
    return _json(
        {
            "default_generation_settings": {"n_ctx": status.card.context_length},
            "total_slots": len(roster.workers(status.card.id)),
            "model_alias": status.name,
            "modalities": {"vision": False, "audio": False},
            "build_info": f"rockchipllama {VERSION}",
        }
    )


@router.get("/version", summary="The version of this service")
async def version(http: Request) -> Response:
    """As vLLM's server says it."""
    return _json({"version": VERSION})


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
