"""The routes of the OpenAI front: read, translate, relay, frame."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.answer import Answer
from api.body import parse, read_body, read_bytes
from api.delivery import begin, headers_of, whole
from api.docs_page import takes
from api.drain import close
from api.framing import AnswerStream
from api.needs import drain_of, roster_of, services_of, settings_of
from api.openai.endpoints import CHAT, COMPLETION, Kind, head_of, rerank_body
from api.openai.reading_schemas import EmbeddingBody, RerankBody
from api.openai.schemas import ChatCompletionBody, CompletionBody, SamplingBody
from api.openai.translate import chat, completions, embeddings, models, rerank
from api.openai.translate.kept import keep, writer_of
from tasks.events import Finished, Reply
from tasks.jobs import Lane, Rendering
from tasks.requests import Request as JobRequest
from tasks.roster import ModelStatus

asking = APIRouter(tags=["OpenAI"])
router = APIRouter(tags=["OpenAI"])
SHAPES: tuple[type[BaseModel], ...] = (ChatCompletionBody, CompletionBody, EmbeddingBody, RerankBody)


@asking.post("/chat/completions", include_in_schema=False)
@asking.post("/v1/chat/completions", summary="Answer a chat", openapi_extra=takes(ChatCompletionBody))
async def chat_completions(http: Request) -> Response:
    """Answer a conversation, streamed or whole."""
    body = await read_body(http, ChatCompletionBody)
    return await _answer(http, body, chat.to_request(body), body.n, CHAT)


@asking.post("/completions", include_in_schema=False)
@asking.post("/v1/completions", summary="Continue a text", openapi_extra=takes(CompletionBody))
async def text_completions(http: Request) -> Response:
    """Continue texts or token ids without a chat template, streamed or whole."""
    body = await read_body(http, CompletionBody)
    return await _answer(http, body, completions.to_request(body), len(body.prompt) * body.n, COMPLETION)


@asking.post("/embeddings", include_in_schema=False)
@asking.post("/v1/embeddings", summary="Embed texts", openapi_extra=takes(EmbeddingBody))
async def embed(http: Request) -> Response:
    """The vectors of texts or token ids."""
    body = await read_body(http, EmbeddingBody)
    answer, reply, end = await _read(http, body.model, embeddings.to_request(body))
    return _json(embeddings.whole(embeddings.head_of(body, answer.model), reply, end), headers_of(answer))


@asking.post("/rerank", include_in_schema=False)
@asking.post("/reranking", include_in_schema=False)
@asking.post("/v1/reranking", include_in_schema=False)
@asking.post("/v2/rerank", include_in_schema=False)
@asking.post("/api/rerank", include_in_schema=False)
@asking.post("/v1/rerank", summary="Rank documents by a query", openapi_extra=takes(RerankBody))
async def rerank_documents(http: Request) -> Response:
    """How well each document answers a query, the best one first."""
    body = rerank_body(http, parse(await read_bytes(http, settings_of(http))))
    answer, reply, end = await _read(http, body.model, rerank.to_request(body))
    return _json(rerank.whole(rerank.head_of(body, answer.job, answer.model), reply, end), headers_of(answer))


async def _read(http: Request, model: str | None, request: JobRequest) -> tuple[Answer, Reply, Finished]:
    """Have a model read something, and wait for what comes of it."""
    answer = await begin(http, model, request, stream=False)
    try:
        return answer, *await whole(http, answer)
    except BaseException:
        await close(answer)
        raise


async def _answer(http: Request, body: SamplingBody, request: JobRequest, choices: int, kind: Kind) -> Response:
    flex = body.service_tier == "flex"

    def rendering(job: str, status: ModelStatus) -> Rendering:
        head = head_of(kind, body, choices, job, status, "flex" if flex else "default")
        return keep(kind.writer.kind, head)

    lane = Lane.BACKGROUND if flex else Lane.INTERACTIVE
    answer = await begin(http, body.model, request, stream=body.stream, lane=lane, rendering=rendering)
    try:
        return await _deliver(http, answer, kind, stream=body.stream)
    except BaseException:
        # Until a response has taken it over, the answer is ours to close.
        await close(answer)
        raise


async def _deliver(http: Request, answer: Answer, kind: Kind, *, stream: bool) -> Response:
    assert answer.rendering is not None
    writer = writer_of(answer.rendering.head)
    headers = headers_of(answer)
    if stream:
        return AnswerStream(answer, writer, drain_of(http), headers=headers, stalled=settings_of(http).stalled_client)
    reply, end = await whole(http, answer)
    return _json(kind.whole(writer.head, reply, end), headers)


@router.get("/models", include_in_schema=False)
@router.get("/v1/models", summary="List the models")
async def list_models(http: Request) -> Response:
    """Every model that a board has announced, alone and with each of its adapters."""
    known = [each for status in (await roster_of(http)).models() for each in (status, *status.adapted())]
    return _json(models.listing([models.model(status) for status in known]))


@router.get("/models/{model:path}", include_in_schema=False)
@router.get("/v1/models/{model:path}", summary="Show a model")
async def show_model(http: Request, model: str) -> Response:
    """One model, by its id or any name it answers to."""
    return _json(models.model(services_of(http)["roster"].resolve(model), model))


def _json(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json")
