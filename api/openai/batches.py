"""Batches, as clients make and watch them: `/v1/batches`."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from api.auth import owner_of, require
from api.body import Wire, read_body
from api.docs_page import takes
from api.errors import HttpProblem, Problem, invalid
from api.idempotency import TAKEN, key_of
from api.json_response import json_response
from api.needs import services_of
from api.openai.endpoints import ENDPOINTS
from api.openai.files import LONGEST, SHORTEST, find, may_see
from api.openai.paging import page
from tasks.api_keys import Scope
from tasks.batch import PREFIX, Batch, BatchOrder, BatchState, Progress
from tasks.errors import BatchUnknown, FileUnknown, KeyReused
from tasks.files import new_file_id
from tasks.jobs import job_id_of, new_job_id

router = APIRouter(tags=["Files and batches"])

_WINDOW = re.compile(r"(\d{1,4}) ?(m|h|d)")
_UNTIL = re.compile(r"until (\d{1,2}):(\d{2})")
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_WINDOW = 30 * 86400.0


class OutputExpiry(Wire):
    """When the files that the batch writes are to go."""

    anchor: str
    seconds: int = Field(ge=SHORTEST, le=LONGEST)


def _metadata(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) > 16:
            raise ValueError("it should have at most 16 keys")
        for key, text in value.items():
            if len(key) > 64 or not isinstance(text, str) or len(text) > 512:
                raise ValueError("its keys should have at most 64 characters, its values be texts of at most 512")
    return value


class BatchBody(Wire):
    """The body of `POST /v1/batches`."""

    input_file_id: str = Field(max_length=64)
    endpoint: str = Field(max_length=64)
    completion_window: str = Field("24h", max_length=32)
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_metadata)] = None
    output_expires_after: OutputExpiry | None = None


def window_of(said: str, now: datetime | None = None) -> float:
    """The seconds of a completion window: `24h`, `90m`, `7d`, or `until 07:00` by this machine's clock. Raises `HttpProblem`."""
    if found := _WINDOW.fullmatch(said):
        seconds = int(found[1]) * _UNITS[found[2]]
        if 60 <= seconds <= LONGEST_WINDOW:
            return seconds
    elif (found := _UNTIL.fullmatch(said)) and int(found[1]) < 24 and int(found[2]) < 60:
        now = now or datetime.now()
        end = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
        return ((end if end > now else end + timedelta(days=1)) - now).total_seconds()
    raise invalid(
        "'completion_window' should be a length of time from a minute to 30 days, such as '24h' or '90m', or a time of the "
        "day, as in 'until 07:00'.",
        "completion_window",
    )


def say(batch: Batch) -> dict[str, Any]:
    """A batch as clients know it."""
    order, progress = batch.order, batch.progress
    moment = progress.moments.get
    written = progress.over and progress.written > 0
    refused = progress.over and progress.refused > 0
    return {
        "id": order.id,
        "object": "batch",
        "endpoint": order.endpoint,
        "errors": _errors(progress),
        "input_file_id": order.input_file,
        "completion_window": order.window_said,
        "status": progress.state.value,
        "output_file_id": order.output_file if written else None,
        "error_file_id": order.error_file if refused else None,
        "created_at": order.created,
        "expires_at": order.created + int(order.window),
        **{f"{state.value}_at": moment(state.value) for state in BatchState if state is not BatchState.VALIDATING},
        "request_counts": {
            "total": progress.total,
            "completed": progress.completed,
            "failed": progress.failed,
        },
        "usage": {
            "input_tokens": progress.prompt_tokens,
            "input_tokens_details": {"cached_tokens": progress.cached_tokens},
            "output_tokens": progress.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": progress.reasoning_tokens},
            "total_tokens": progress.prompt_tokens + progress.completion_tokens,
        },
        "metadata": order.metadata,
    }


def _errors(progress: Progress) -> dict[str, Any] | None:
    if not progress.problems:
        return None
    data = [
        {"code": each.code, "message": each.message, "param": each.param, "line": each.line}
        for each in progress.problems
    ]
    return {"object": "list", "data": data}


@router.post("/batches", include_in_schema=False)
@router.post("/v1/batches", summary="Start a batch", openapi_extra=takes(BatchBody) | TAKEN)
async def create_batch(http: Request) -> Response:
    """Answer every request of a file. With an `Idempotency-Key` the same call, sent again, gives the same batch."""
    require(http, Scope.BATCH)
    body = await read_body(http, BatchBody)
    if body.endpoint not in ENDPOINTS:
        raise invalid(f"'endpoint' should be one of {', '.join(ENDPOINTS)}.", "endpoint")
    window = window_of(body.completion_window)
    if body.output_expires_after is not None and body.output_expires_after.anchor != "created_at":
        raise invalid("'output_expires_after.anchor' should be 'created_at'.", "output_expires_after.anchor")
    try:
        file = await find(http, body.input_file_id)
    except FileUnknown as error:
        raise invalid(str(error), "input_file_id") from None
    if file.purpose != "batch":
        raise invalid(
            f"The file '{file.id}' was uploaded with the purpose '{file.purpose}'; upload it with 'batch'.",
            "input_file_id",
        )
    books = services_of(http)
    await books["files"].check_room()
    key, owner = key_of(http), owner_of(http)
    order = BatchOrder(
        id=PREFIX + (new_job_id() if key is None else job_id_of(f"{owner}\0{key}")),
        owner=owner,
        endpoint=body.endpoint,
        input_file=file.id,
        output_file=new_file_id(),
        error_file=new_file_id(),
        window=window,
        window_said=body.completion_window,
        created=int(time.time()),
        metadata=body.metadata,
        output_expires_after=body.output_expires_after.seconds if body.output_expires_after is not None else None,
    )
    if await books["batches"].create(order, again=key is not None):
        books["feeding"].look()
    batch = await books["batches"].get(order.id)
    if _asked(batch.order) != _asked(order):
        raise KeyReused
    return json_response(say(batch))


def _asked(order: BatchOrder) -> tuple[object, ...]:
    return order.endpoint, order.input_file, order.window_said, order.metadata, order.output_expires_after


async def _find(http: Request, batch_id: str) -> Batch:
    require(http, Scope.BATCH)
    batch = await services_of(http)["batches"].get(batch_id)
    if not may_see(http, batch.order.owner):
        raise BatchUnknown(batch_id)
    return batch


@router.get("/batches", include_in_schema=False)
@router.get("/v1/batches", summary="List the batches")
async def list_batches(http: Request) -> Response:
    """Those of this client, the newest first, a page at a time."""
    require(http, Scope.BATCH)
    book = services_of(http)["batches"]
    orders = [order for order in await book.every() if may_see(http, order.owner)]
    shown = page(http, orders, lambda order: order.id, lambda order: {"id": order.id}, limit=20, most=100)
    found = []
    for each in shown["data"]:
        with suppress(BatchUnknown):  # its time was over just then
            found.append(say(await book.get(each["id"])))
    return json_response(shown | {"data": found})


@router.get("/batches/{batch_id}", include_in_schema=False)
@router.get("/v1/batches/{batch_id}", summary="Show a batch")
async def show_batch(http: Request, batch_id: str) -> Response:
    """How far it is."""
    return json_response(say(await _find(http, batch_id)))


@router.post("/batches/{batch_id}/cancel", include_in_schema=False)
@router.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch")
async def cancel_batch(http: Request, batch_id: str) -> Response:
    """Run no more of its items; the answers there are can be downloaded."""
    batch = await _find(http, batch_id)
    if not await services_of(http)["batches"].cancel(batch.order.id):
        state = batch.progress.state.value
        raise HttpProblem(
            Problem(
                409,
                "batch_over",
                f"The batch '{batch_id}' has ended ({state}), so it cannot be cancelled.",
                retry=False,
            )
        )
    services_of(http)["feeding"].look()
    return json_response(say(await _find(http, batch_id)))
