"""Settings that administrators change while the service runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth import require, who
from api.body import parse, read_bytes
from api.errors import invalid
from api.needs import services_of, settings_of
from tasks.api_keys import Scope
from tasks.errors import QueueUnavailable
from tasks.live_settings import FRESH, SettingRefused, SettingsBook, SettingView

log = logging.getLogger("rockchipllama.settings")

router = APIRouter(prefix="/v1/settings", tags=["Settings"])


@router.get("", summary="Show what may be changed while the service runs")
async def show_settings(http: Request) -> Response:
    """Each such setting: `value` is what counts now, `own` what this API process was started with. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    return _json(await services_of(http)["settings"].view())


@router.patch(
    "",
    summary="Change settings of the running service",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "additionalProperties": True},
                    "example": {"queue_limit": 128, "deadline": None},
                }
            },
        }
    },
)
async def change_settings(http: Request) -> Response:
    """Values by their settings' names; null takes a change back. All of them are changed or none, in every process of the
    service within about two seconds, and they outlast restarts. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    wanted = parse(await read_bytes(http, settings_of(http)))
    if not wanted:
        raise invalid("Nothing is to be changed: send an object with the settings' names and values.")
    try:
        return _json(await services_of(http)["settings"].change(wanted, await who(http)))
    except SettingRefused as error:
        raise invalid(str(error), error.name) from error


@asynccontextmanager
async def following(book: SettingsBook) -> AsyncIterator[None]:
    """Obey what is kept of settings while the block lasts."""
    task = asyncio.create_task(_follow(book), name="settings")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(book: SettingsBook) -> None:
    while True:
        try:
            await book.refresh()
        except QueueUnavailable as error:
            log.debug("settings could not be read: %s", error)  # the feed has told of the outage
        except Exception:
            log.exception("settings could not be followed")
        await asyncio.sleep(FRESH)


def _json(views: list[SettingView]) -> Response:
    shown: dict[str, Any] = {"object": "list", "data": views}
    return Response(msgspec.json.encode(shown), headers={"cache-control": "no-store"}, media_type="application/json")
