"""The endpoints whose whole answers may also be asked for in other ways than by a request of their own: in batches, and as
jobs that nobody waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest

from api.body import check
from api.fronts import Asked, Asking
from api.needs import settings_of
from api.openai.reading_schemas import EmbeddingBody, RerankBody, RerankTextsBody
from api.openai.responses import lone, stored
from api.openai.responses.lone import LoneResponseBody
from api.openai.schemas import ChatCompletionBody, CompletionBody, SamplingBody
from api.openai.translate import chat, completions, embeddings, kept, rerank
from api.openai.translate.answer import Head, fingerprint
from api.openai.translate.chunks import ChunkWriter
from api.openai.translate.tools import legacy
from tasks.events import Event, Finished, Reply
from tasks.jobs import Rendering
from tasks.requests import Request as JobRequest
from tasks.roster import ModelStatus


@dataclass(frozen=True, slots=True)
class Kind:
    """What differs between the two ways to generate: the prefix of ids, and how an answer is said."""

    prefix: str
    writer: type[ChunkWriter]
    whole: Callable[[Head, Reply, Finished], dict[str, Any]]


CHAT = Kind("chatcmpl", chat.ChatWriter, chat.whole)
COMPLETION = Kind("cmpl", completions.CompletionWriter, completions.whole)


def head_of(kind: Kind, body: SamplingBody, choices: int, job: str, status: ModelStatus, tier: str) -> Head:
    """The head of the answer to `body`, given as a job by a model."""
    card = status.card
    return Head(
        id=f"{kind.prefix}-{job}",
        created=int(time.time()),
        model=body.model or status.name,
        fingerprint=fingerprint(status.name, card.engine, card.engine_version, card.quantization),
        tier=tier,
        choices=choices,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        functions=isinstance(body, ChatCompletionBody) and legacy(body),
        best=completions.best_of(body) if isinstance(body, CompletionBody) else None,
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of them: the shape of its body, what that asks for, how the answer is said, and the answer as the endpoint itself
    would give it, made of `Rendering.head`."""

    shape: type[Any]
    to_request: Callable[[Any], JobRequest]
    rendering: Callable[[Any, str, ModelStatus], Rendering]
    whole: Callable[[bytes, Sequence[Event], Finished], Any] = kept.whole

    async def asked(self, http: HttpRequest, data: dict[str, Any]) -> Asked:
        """What a body asks for that came in another request. Raises `HttpProblem`."""
        body = check(data, self.shape, settings_of(http))
        return Asked(body.model, self.to_request(body), lambda job, status: self.rendering(body, job, status))


def _chat(body: ChatCompletionBody, job: str, status: ModelStatus) -> Rendering:
    return kept.keep(CHAT.writer.kind, head_of(CHAT, body, body.n, job, status, "default"))


def _completion(body: CompletionBody, job: str, status: ModelStatus) -> Rendering:
    choices = len(body.prompt) * body.n
    return kept.keep(COMPLETION.writer.kind, head_of(COMPLETION, body, choices, job, status, "default"))


def _embedding(body: EmbeddingBody, job: str, status: ModelStatus) -> Rendering:
    return kept.keep(kept.VECTORS, embeddings.head_of(body, status.name))


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(ChatCompletionBody, chat.to_request, _chat),
    "/v1/completions": Endpoint(CompletionBody, completions.to_request, _completion),
    "/v1/embeddings": Endpoint(EmbeddingBody, embeddings.to_request, _embedding),
    "/v1/responses": Endpoint(LoneResponseBody, lone.to_request, lone.rendering, stored.whole),
}
"""Those that batches have, by their paths."""


def rerank_body(http: HttpRequest, data: dict[str, Any]) -> RerankBody | RerankTextsBody:
    """The body of a request to rerank, in the one form or the other. Raises `HttpProblem`."""
    if "documents" not in data and "texts" in data:
        return check(data, RerankTextsBody, settings_of(http))
    return check(data, RerankBody, settings_of(http))


async def _rerank_asked(http: HttpRequest, data: dict[str, Any]) -> Asked:
    body = rerank_body(http, data)
    return Asked(
        body.model,
        rerank.to_request(body),
        lambda job, status: kept.keep(kept.RANKING, rerank.head_of(body, job, status.name)),
    )


ASKINGS: dict[str, Asking] = {path: endpoint.asked for path, endpoint in ENDPOINTS.items()} | {
    "/v1/rerank": _rerank_asked
}
"""What can also be asked for in another request."""
