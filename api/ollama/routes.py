"""The routes of the Ollama front that have a model answer: read, translate, relay, frame."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.answer import Answer
from api.auth import require
from api.body import check, read_body
from api.delivery import begin, headers_of, while_connected, whole
from api.drain import close
from api.errors import invalid, unsupported
from api.framing import AnswerStream
from api.fronts import Asked, Asking
from api.json_response import json_response
from api.known_clients import without_own_tools
from api.needs import drain_of, services_of, settings_of
from api.ollama.problems import named
from api.ollama.schemas import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, GenerationBody
from api.ollama.translate import chat, embeddings, generate
from api.ollama.translate.answer import Head, now
from api.ollama.translate.kept import VECTOR, VECTORS, keep, writer_of
from api.ollama.translate.models import capabilities
from tasks.api_keys import Scope
from tasks.events import Finished, Reply
from tasks.requests import Request as JobRequest
from tasks.roster import ModelStatus

asking = APIRouter(tags=["Ollama"])
SHAPES: tuple[type[BaseModel], ...] = (ChatBody, GenerateBody, EmbedBody, EmbeddingsBody)


def takes(shape: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI page says of a route's body, which the route reads itself."""
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@asking.post("/api/chat", summary="Answer a chat", openapi_extra=takes(ChatBody))
async def answer_chat(http: Request) -> Response:
    """Answer a conversation, streamed unless told otherwise; without messages load or unload the model."""
    body = await read_body(http, ChatBody)
    status = await named(http, body.model)
    head = Head(body.model, now())
    if not body.messages:
        return json_response(chat.loaded(head, await _load_or_unload(http, status, body.keep_alive)))
    return await _answer(http, status, body, _chat(status, body, head))


@asking.post("/api/generate", summary="Answer a prompt", openapi_extra=takes(GenerateBody))
async def answer_prompt(http: Request) -> Response:
    """Answer one prompt, streamed unless told otherwise; without a prompt load or unload the model."""
    body = await read_body(http, GenerateBody)
    status = await named(http, body.model)
    head = Head(body.model, now())
    if not body.prompt and not body.suffix:
        return json_response(generate.loaded(head, await _load_or_unload(http, status, body.keep_alive)))
    return await _answer(http, status, body, _generate(status, body, head))


@asking.post("/api/embed", summary="Embed texts", openapi_extra=takes(EmbedBody))
async def embed(http: Request) -> Response:
    """The vectors of texts."""
    body = await read_body(http, EmbedBody)
    status = await named(http, body.model)
    if not body.input:
        return json_response({"model": body.model, "embeddings": []})
    answer, reply, end = await _read(http, status, body, embeddings.to_request(body))
    return json_response(embeddings.whole(Head(body.model, now()), reply, end), headers_of(answer))


@asking.post("/api/embeddings", summary="Embed one text, the older way", openapi_extra=takes(EmbeddingsBody))
async def embed_one(http: Request) -> Response:
    """The vector of one text."""
    body = await read_body(http, EmbeddingsBody)
    status = await named(http, body.model)
    if not body.prompt:
        return json_response({"embedding": []})
    answer, reply, end = await _read(http, status, body, embeddings.to_one_request(body))
    return json_response(embeddings.one(Head(body.model, now()), reply, end), headers_of(answer))


async def _chat_asked(http: Request, data: dict[str, Any]) -> Asked:
    body = check(data, ChatBody, settings_of(http))
    status = await named(http, body.model)
    _check_asked(bool(body.messages), "messages", body)
    return _chat(status, body, Head(body.model, now()))


async def _generate_asked(http: Request, data: dict[str, Any]) -> Asked:
    body = check(data, GenerateBody, settings_of(http))
    status = await named(http, body.model)
    _check_asked(bool(body.prompt or body.suffix), "prompt", body)
    return _generate(status, body, Head(body.model, now()))


async def _embed_asked(http: Request, data: dict[str, Any]) -> Asked:
    body = check(data, EmbedBody, settings_of(http))
    await named(http, body.model)
    _check_asked(bool(body.input), "input", body)
    head = Head(body.model, now())
    return Asked(body.model, embeddings.to_request(body), lambda job, status: keep(VECTORS, head))


async def _embed_one_asked(http: Request, data: dict[str, Any]) -> Asked:
    body = check(data, EmbeddingsBody, settings_of(http))
    await named(http, body.model)
    _check_asked(bool(body.prompt), "prompt", body)
    head = Head(body.model, now())
    return Asked(body.model, embeddings.to_one_request(body), lambda job, status: keep(VECTOR, head))


ASKINGS: dict[str, Asking] = {
    "/api/chat": _chat_asked,
    "/api/generate": _generate_asked,
    "/api/embed": _embed_asked,
    "/api/embeddings": _embed_one_asked,
}
"""What can also be asked for in another request."""


def _check_asked(something: bool, field: str, body: GenerationBody | EmbedBody | EmbeddingsBody) -> None:
    if not something:
        raise invalid(f"Without '{field}' there is nothing to answer; this way no model is loaded or unloaded.", field)
    if body.keep_alive is not None:
        raise unsupported("keep_alive", "'keep_alive' goes with a request of its own.")


def _chat(status: ModelStatus, body: ChatBody, head: Head) -> Asked:
    _check(status, body)
    if any(message.images for message in body.messages):
        raise _no_images(body.model)
    request = chat.to_request(body)
    if "tools" not in capabilities(status) and without_own_tools(request, calls_tools=False).tools:
        raise unsupported("tools", f'"{body.model}" does not support tools')
    return Asked(body.model, request, lambda job, status: keep(chat.ChatWriter.kind, head))


def _generate(status: ModelStatus, body: GenerateBody, head: Head) -> Asked:
    _check(status, body)
    if body.images:
        raise _no_images(body.model)
    request: JobRequest
    if body.raw or body.suffix or (not status.card.chat and not body.template):
        if not body.raw and not body.suffix and (body.system or body.context):
            raise unsupported(
                "system", f'"{body.model}" has no chat template, so there is no place for a system prompt or a context'
            )
        request = generate.to_completion(body)
    else:
        before = generate.turns(body)
        head = Head(head.model, head.created, before)
        request = generate.to_chat(body, before)
    return Asked(body.model, request, lambda job, status: keep(generate.GenerateWriter.kind, head))


def _check(status: ModelStatus, body: GenerationBody) -> None:
    """Refuse what would be ignored otherwise, in Ollama's words."""
    if body.think and "thinking" not in capabilities(status):
        raise unsupported("think", f'"{body.model}" does not support thinking')


def _no_images(model: str) -> Exception:
    return invalid(f'"{model}" does not support images: it reads text only', "images", "unsupported_content")


async def _load_or_unload(http: Request, status: ModelStatus, keep_alive: float | None) -> str:
    """Do it, and say in a word what was done."""
    require(http, Scope.INFERENCE)
    relay = services_of(http)["relay"]
    if keep_alive == 0:
        await while_connected(http, relay.unload(status.card.id))
        return "unload"
    await while_connected(http, relay.load(status))
    _keep(http, status, keep_alive)
    return "load"


def _keep(http: Request, status: ModelStatus, keep_alive: float | None) -> None:
    """Have it stay for so long, where that was said. Behind an accepted job: 0 is as soon as that has ended."""
    if keep_alive is not None:
        services_of(http)["relay"].keep(status, keep_alive)


async def _read(
    http: Request, model: ModelStatus, body: EmbedBody | EmbeddingsBody, request: JobRequest
) -> tuple[Answer, Reply, Finished]:
    """Have a model read something, and wait for what comes of it."""
    answer = await begin(http, body.model, request, stream=False)
    try:
        _keep(http, model, body.keep_alive)
        return answer, *await whole(http, answer)
    except BaseException:
        await close(answer)
        raise


async def _answer(http: Request, model: ModelStatus, body: GenerationBody, asked: Asked) -> Response:
    answer = await begin(http, asked.model, asked.request, stream=body.stream, rendering=asked.rendering)
    try:
        _keep(http, model, body.keep_alive)
        return await _deliver(http, answer, stream=body.stream)
    except BaseException:
        # Until a response has taken it over, the answer is ours to close.
        await close(answer)
        raise


async def _deliver(http: Request, answer: Answer, *, stream: bool) -> Response:
    assert answer.rendering is not None
    writer = writer_of(answer.rendering.head)
    headers = headers_of(answer)
    if stream:
        stalled = settings_of(http).stalled_client
        return AnswerStream(answer, writer, drain_of(http), headers=headers, stalled=stalled, lines=True)
    reply, end = await whole(http, answer)
    return json_response(writer.whole(reply, end), headers)
