"""The routes of stored and streamed responses: `/v1/responses`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.auth import owner_of
from api.body import check, parse, read_bytes
from api.delivery import begin, headers_of, said
from api.docs_page import takes
from api.drain import close
from api.errors import HttpProblem, Problem, invalid
from api.framing import AnswerStream
from api.needs import drain_of, services_of, settings_of
from api.openai.responses.head import head_of
from api.openai.responses.items import Items, with_types
from api.openai.responses.request import to_request
from api.openai.responses.schemas import ResponseBody
from api.openai.responses.stored import (
    Conversation,
    Stored,
    encode,
    head_in,
    job_of,
    job_of_item,
    keep,
    missing,
    writer_of,
)
from api.openai.responses.tools import offer
from api.openai.responses.writer import ResponseWriter, response_of
from api.texts import ask_board
from tasks.commands import Count
from tasks.errors import JobNotFound
from tasks.events import Queued, Unreadable
from tasks.jobs import Kept, Lane, Rendering, is_job_id
from tasks.roster import ModelStatus

router = APIRouter(tags=["OpenAI"])
SHAPES: tuple[type[BaseModel], ...] = (ResponseBody,)

PAGE = 20
"""Items on a page of which nobody said how many it should have."""
LONGEST_PAGE = 100


def _query(**fields: dict[str, Any]) -> dict[str, Any]:
    """What the OpenAPI page says of a route whose query has these fields, which it reads itself."""
    listed = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()]
    return {"parameters": listed}


@router.post("/responses", include_in_schema=False)
@router.post("/v1/responses", summary="Make a response", openapi_extra=takes(ResponseBody))
async def create_response(http: Request) -> Response:
    """Answer a conversation: streamed, whole, or in the background."""
    body, items, conversation = await _read(http)
    offered = offer(body.tools)
    request = to_request(body, items, offered)

    def rendering(job: str, status: ModelStatus) -> Rendering:
        return keep(head_of(body, offered, job, body.model or status.name, int(time.time())))

    answer = await begin(
        *(http, body.model, request),
        # What goes on in the background commits to nothing before its client knows of it.
        stream=body.stream,
        lane=Lane.BACKGROUND if body.background or body.service_tier == "flex" else Lane.INTERACTIVE,
        rendering=rendering,
        kept=Kept(conversation, settings_of(http).response_ttl) if body.store else None,
        attended=not body.background,
    )
    try:
        assert answer.rendering is not None
        writer, headers = writer_of(answer.rendering.head), headers_of(answer)
        if body.stream:
            return AnswerStream(
                answer, writer, drain_of(http), headers=headers, stalled=settings_of(http).stalled_client
            )
        if not body.background:
            events, _ = await said(http, answer)
            return _json(response_of(writer.head, events)[0], headers)
        answer.known = True
        await close(answer)
        return _json(response_of(writer.head, (Queued(),))[0], headers)
    except BaseException:
        # Until a response has taken it over, the answer is ours to close.
        await close(answer)
        raise


async def _read(http: Request) -> tuple[ResponseBody, Items, bytes]:
    """The body, the whole conversation that it goes on with, and the same as it is kept. Raises `HttpProblem`."""
    settings = settings_of(http)
    data = parse(await read_bytes(http, settings))
    body = check(data, ResponseBody, settings)
    sent = data.get("input") or []
    own = with_types([{"role": "user", "content": sent}] if isinstance(sent, str) else sent)
    history = await _history(http, body.previous_response_id)
    own = await _resolved(http, own)
    if len(history) + len(own) > settings.max_messages:
        raise invalid(
            f"The conversation has {len(history) + len(own)} items with what went before, and may have {settings.max_messages}.",
            "input",
        )
    conversation = encode(Conversation(history, own))
    if len(conversation) > settings.max_body:
        raise HttpProblem(
            Problem(
                *(413, "request_too_large"),
                f"The conversation has {len(conversation)} bytes with what went before, and may have {settings.max_body}.",
                "previous_response_id",
            )
        )
    return body, history + own, conversation


async def _history(http: Request, previous: str | None) -> Items:
    """What was said up to the end of that response."""
    if previous is None:
        return []
    try:
        return (await _stored(http, job_of(previous))).conversation
    except JobNotFound:
        shown = previous if len(previous) <= 60 else previous[:60] + "…"
        raise HttpProblem(
            Problem(
                *(404, "previous_response_not_found", f"Previous response with id '{shown}' not found."),
                "previous_response_id",
                retry=False,
            )
        ) from None


async def _resolved(http: Request, items: Items) -> Items:
    """The items, each reference to one of an earlier response replaced by that."""
    found: dict[str, Items] = {}
    resolved: Items = []
    for item in items:
        if item["type"] != "item_reference":
            resolved.append(item)
            continue
        job = job_of_item(item["id"])
        try:
            if job not in found:
                found[job or ""] = (await _stored(http, job)).conversation
            resolved.append(next(each for each in found[job or ""] if each["id"] == item["id"]))
        except (JobNotFound, StopIteration):
            message = (
                f"Item with id '{item['id'][:60]}' not found. Items are kept with the response that they are part of."
            )
            raise HttpProblem(Problem(404, None, message, "input", retry=False)) from None
    return resolved


async def _stored(http: Request, job: str | None) -> Stored:
    """The stored response of that job, which this client asked for. Raises `JobNotFound`, and `HttpProblem`."""
    if job is None or not is_job_id(job):
        raise JobNotFound(job or "")
    kept = await services_of(http)["jobs"].kept(job)
    if kept.owner != owner_of(http):
        raise JobNotFound(job)
    try:
        return Stored(job, kept)
    except Unreadable as error:
        raise HttpProblem(Problem(500, "unreadable_record", str(error), retry=False, job=job)) from error


async def _asked(http: Request, response: str) -> Stored:
    """The stored response of that id. Raises `HttpProblem`."""
    try:
        return await _stored(http, job_of(response))
    except JobNotFound:
        raise missing(response) from None


@router.post("/responses/input_tokens", include_in_schema=False)
@router.post(
    "/v1/responses/input_tokens", summary="Count what a response would read", openapi_extra=takes(ResponseBody)
)
async def count_input_tokens(http: Request) -> Response:
    """How many tokens the model would read for the same body; a board counts them, whatever is being generated."""
    body, items, _ = await _read(http)
    request = to_request(body, items, offer(body.tools))
    _, count = await ask_board(http, body.model, lambda model: Count(model, request), int)
    return _json({"object": "response.input_tokens", "input_tokens": count})


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
        return _json(stored.body, {"x-job-id": stored.head.job})
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
    return _json({"id": stored.body["id"], "object": "response", "deleted": True})


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
    return _json(stored.body, {"x-job-id": stored.head.job})


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
    return _json({"object": "list", "data": page, **ids, "has_more": len(items) > limit})


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


def _json(value: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(value),
        headers={"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )
