"""The routes that make responses: `/v1/responses`."""

from __future__ import annotations

import time

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.delivery import begin, headers_of, said
from api.docs_page import takes
from api.drain import close
from api.framing import AnswerStream
from api.json_response import json_response
from api.needs import drain_of, settings_of
from api.openai.responses.conversation import read
from api.openai.responses.head import head_of
from api.openai.responses.request import to_request
from api.openai.responses.schemas import ResponseBody
from api.openai.responses.stored import keep, writer_of
from api.openai.responses.tools import offer
from api.openai.responses.writer import response_of
from api.texts import ask_board
from tasks.commands import Count
from tasks.events import Queued
from tasks.jobs import Kept, Lane, Rendering
from tasks.roster import ModelStatus

asking = APIRouter(tags=["OpenAI"])
router = APIRouter(tags=["OpenAI"])
SHAPES: tuple[type[BaseModel], ...] = (ResponseBody,)


@asking.post("/responses", include_in_schema=False)
@asking.post("/v1/responses", summary="Make a response", openapi_extra=takes(ResponseBody))
async def create_response(http: Request) -> Response:
    """Answer a conversation: streamed, whole, or in the background."""
    body, items, conversation = await read(http)
    offered = offer(body.tools)
    request = to_request(body, items, offered)

    def rendering(job: str, status: ModelStatus) -> Rendering:
        return keep(head_of(body, offered, job, body.model or status.name, int(time.time())))

    answer = await begin(
        *(http, body.model, request),
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
            return json_response(response_of(writer.head, events)[0], headers)
        answer.known = True
        await close(answer)
        return json_response(response_of(writer.head, (Queued(),))[0], headers)
    except BaseException:
        # Until a response has taken it over, the answer is ours to close.
        await close(answer)
        raise


@router.post("/responses/input_tokens", include_in_schema=False)
@router.post(
    "/v1/responses/input_tokens", summary="Count what a response would read", openapi_extra=takes(ResponseBody)
)
async def count_input_tokens(http: Request) -> Response:
    """How many tokens the model would read for the same body; a board counts them, whatever is being generated."""
    body, items, _ = await read(http)
    request = to_request(body, items, offer(body.tools))
    _, count = await ask_board(http, body.model, lambda model: Count(model, request), int)
    return json_response({"object": "response.input_tokens", "input_tokens": count})
