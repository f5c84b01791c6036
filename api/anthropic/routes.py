"""The routes of the Anthropic front: read, translate, relay, frame."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.answer import Answer
from api.anthropic.schemas import CountBody, MessagesBody
from api.anthropic.speech import SharedRoute
from api.anthropic.translate import models
from api.anthropic.translate.answer import MESSAGE_ID, Head, Thoughts, whole
from api.anthropic.translate.kept import keep, writer_of
from api.anthropic.translate.prompt import to_request
from api.body import check, read_body
from api.delivery import as_read, begin, headers_of
from api.delivery import whole as read_whole
from api.docs_page import takes
from api.drain import close
from api.framing import AnswerStream
from api.fronts import Asked
from api.needs import drain_of, roster_of, services_of, settings_of
from api.texts import ask_board
from tasks.commands import Count
from tasks.errors import UnknownModel
from tasks.jobs import Rendering
from tasks.roster import BEHIND, ModelStatus

asking = APIRouter(tags=["Anthropic"])
router = APIRouter(tags=["Anthropic"])
shared = APIRouter(route_class=SharedRoute, include_in_schema=False)
SHAPES: tuple[type[BaseModel], ...] = (MessagesBody, CountBody)


@asking.post("/messages", include_in_schema=False)
@asking.post("/v1/messages", summary="Answer a conversation", openapi_extra=takes(MessagesBody))
async def messages(http: Request) -> Response:
    """Answer a conversation, streamed or whole."""
    body = await read_body(http, MessagesBody)
    wanted = _asked(http, body)
    answer = await begin(http, wanted.model, wanted.request, stream=body.stream, rendering=wanted.rendering)
    try:
        return await _deliver(http, answer, stream=body.stream)
    except BaseException:
        # Until a response has taken it over, the answer is ours to close.
        await close(answer)
        raise


async def asked(http: Request, data: dict[str, Any]) -> Asked:
    """What a body asks for that came in another request. Raises `HttpProblem`."""
    return _asked(http, check(data, MessagesBody, settings_of(http)))


def _asked(http: Request, body: MessagesBody) -> Asked:
    request = to_request(body)

    def rendering(job: str, status: ModelStatus) -> Rendering:
        return keep(Head(MESSAGE_ID + job, status.name, request.stop, _thoughts(body)))

    return Asked(_meant(http, body.model), request, rendering)


@router.post("/messages/count_tokens", include_in_schema=False)
@router.post("/v1/messages/count_tokens", summary="Count a conversation", openapi_extra=takes(CountBody))
async def count_tokens(http: Request) -> Response:
    """How many tokens a conversation has, as the model would read it; it waits for nothing that is being generated."""
    body = await read_body(http, CountBody)
    request = as_read(http, to_request(body))
    _, tokens = await ask_board(http, _meant(http, body.model), lambda model: Count(model, request), int)
    return _json({"input_tokens": tokens})


async def _deliver(http: Request, answer: Answer, *, stream: bool) -> Response:
    assert answer.rendering is not None
    writer = writer_of(answer.rendering.head)
    headers = headers_of(answer)
    if stream:
        return AnswerStream(answer, writer, drain_of(http), headers=headers, stalled=settings_of(http).stalled_client)
    reply, end = await read_whole(http, answer)
    return _json(whole(writer.head, reply, end), headers)


def _thoughts(body: MessagesBody) -> Thoughts:
    if body.thinking is None or body.thinking.type == "disabled":
        return "hidden"
    return "sealed" if body.thinking.display == "omitted" else "shown"


def _meant(http: Request, name: str | None) -> str | None:
    """The model that is asked for; one of Anthropic's own stands for the one that the settings name."""
    if name is None or not name.lower().startswith("claude"):
        return name
    try:
        services_of(http)["roster"].resolve(name)
    except UnknownModel:
        behind = BEHIND if name.lower().endswith(BEHIND) else ""
        return (settings_of(http).claude_model or "") + behind
    return name


@shared.get("/models")
@shared.get("/v1/models")
async def list_models(http: Request) -> Response:
    """Every model that a board has announced, alone and with each of its adapters."""
    known = [each for status in (await roster_of(http)).models() for each in (status, *status.adapted())]
    return _json(models.listing([models.model(status) for status in known]))


@shared.get("/models/{model:path}")
@shared.get("/v1/models/{model:path}")
async def show_model(http: Request, model: str) -> Response:
    """One model, by its id or any name it answers to."""
    return _json(models.model(services_of(http)["roster"].resolve(model)))


router.include_router(shared)


def _json(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json")
