"""The routes of responses that are stored: shown, streamed again, cancelled, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.drain import close
from api.errors import invalid
from api.framing import AnswerStream
from api.json_response import json_response
from api.needs import drain_of, services_of, settings_of
from api.openai.responses.conversation import find
from api.openai.responses.stored import Stored, head_in, job_of, missing
from api.openai.responses.writer import ResponseWriter
from tasks.errors import JobNotFound

router = APIRouter(tags=["OpenAI"])

PAGE = 20
"""Items on a page of which nobody said how many it should have."""
LONGEST_PAGE = 100


def _query(**fields: dict[str, Any]) -> dict[str, Any]:
    """What the OpenAPI page says of a route whose query has these fields, which it reads itself."""
    listed = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()]
    return {"parameters": listed}


@router.get("/responses/{response}", include_in_schema=False)
@router.get(
    "/v1/responses/{response}",
    summary="Show a response",
    openapi_extra=_query(stream={"type": "boolean"}, starting_after={"type": "integer", "minimum": 0}),
)
async def show_response(http: Request, response: str) -> Response:
    """A stored response as it stands; with `stream=true` its events, behind number `starting_after` where that is given."""
    query = http.query_params
    stream = _flag(query, "stream")
    after = _number(query, "starting_after", -1, 0, 2**53)
    stored = await _asked(http, response)
    if not stream:
        if after >= 0:
            raise invalid("'starting_after' is for a stream: send 'stream=true' with it.", "starting_after")
        return _answer(stored.body, {"x-job-id": stored.head.job})
    if not (stored.head.background and stored.head.streamed):
        raise invalid(
            "Only a response that was made with 'background' and 'stream' can be streamed again. Ask for it without 'stream'.",
            "stream",
        )
    try:
        answer, attended = await services_of(http)["relay"].resume(stored.head.job)
    except JobNotFound:
        raise missing(response) from None
    try:
        head = head_in(attended.rendering)
        assert head is not None
        return AnswerStream(
            *(answer, ResponseWriter(head), drain_of(http)),
            headers={"x-job-id": stored.head.job},
            stalled=settings_of(http).stalled_client,
            skip=after + 1,
        )
    except BaseException:
        await close(answer)
        raise


@router.delete("/responses/{response}", include_in_schema=False)
@router.delete("/v1/responses/{response}", summary="Delete a response")
async def delete_response(http: Request, response: str) -> Response:
    """End a response if it still goes on, and keep nothing of it."""
    stored = await _asked(http, response)
    try:
        await services_of(http)["jobs"].forget(stored.head.job)
    except JobNotFound:
        raise missing(response) from None
    return _answer({"id": stored.body["id"], "object": "response", "deleted": True})


@router.post("/responses/{response}/cancel", include_in_schema=False)
@router.post("/v1/responses/{response}/cancel", summary="Cancel a response")
async def cancel_response(http: Request, response: str) -> Response:
    """End a response that goes on in the background. One that has ended stays as it is."""
    stored = await _asked(http, response)
    if not stored.head.background:
        raise invalid(
            "Only a response that was made with 'background' can be cancelled; of another, close the connection."
        )
    if not stored.ended:
        try:
            await services_of(http)["jobs"].cancel(stored.head.job)
        except JobNotFound:
            raise missing(response) from None
        stored = await _asked(http, response)
    return _answer(stored.body, {"x-job-id": stored.head.job})


@router.get("/responses/{response}/input_items", include_in_schema=False)
@router.get(
    "/v1/responses/{response}/input_items",
    summary="List what a response was given",
    openapi_extra=_query(
        limit={"type": "integer", "minimum": 1, "maximum": LONGEST_PAGE},
        order={"enum": ["asc", "desc"]},
        after={"type": "string"},
    ),
)
async def input_items(http: Request, response: str) -> Response:
    """The items of its conversation before it, the last one first unless `order=asc` is asked for."""
    query = http.query_params
    limit = _number(query, "limit", PAGE, 1, LONGEST_PAGE)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("Invalid 'order': it should be 'asc' or 'desc'.", "order")
    items = (await _asked(http, response)).input
    if order == "desc":
        items.reverse()
    if after := query.get("after"):
        place = next((index for index, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise invalid(f"Invalid 'after': there is no item with the id '{after[:60]}' in this response.", "after")
        items = items[place + 1 :]
    page = items[:limit]
    ids = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return _answer({"object": "list", "data": page, **ids, "has_more": len(items) > limit})


async def _asked(http: Request, response: str) -> Stored:
    """The stored response of that id. Raises `HttpProblem`."""
    try:
        return await find(http, job_of(response))
    except JobNotFound:
        raise missing(response) from None


def _flag(query: Mapping[str, str], name: str) -> bool:
    match query.get(name, "false").lower():
        case "true" | "1":
            return True
        case "false" | "0" | "":
            return False
    raise invalid(f"Invalid '{name}': it should be true or false.", name)


def _number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and least <= int(text) <= most):
        raise invalid(f"Invalid '{name}': it should be a whole number from {least} to {most}.", name)
    return int(text)


def _answer(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    return json_response(value, {"cache-control": "no-store", **(headers or {})})
