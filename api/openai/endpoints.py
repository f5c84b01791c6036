"""The endpoints whose whole answers may also be asked for in other ways than by a request of their own: in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from api.openai.reading_schemas import EmbeddingBody
from api.openai.responses import batched
from api.openai.responses.batched import BatchedResponseBody
from api.openai.schemas import ChatCompletionBody, CompletionBody, SamplingBody
from api.openai.translate import chat, completions, embeddings
from api.openai.translate.answer import Head, fingerprint
from api.openai.translate.chunks import ChunkWriter
from api.openai.translate.tools import legacy
from tasks.events import Event, Finished, Reply, fold
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
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of them: the shape of its body, what that asks for, and the answer as the endpoint itself would give it."""

    shape: type[Any]
    to_request: Callable[[Any], JobRequest]
    whole: Callable[[Any, str, ModelStatus, Sequence[Event], Finished], dict[str, Any]]


def _chat(
    body: ChatCompletionBody, job: str, status: ModelStatus, events: Sequence[Event], end: Finished
) -> dict[str, Any]:
    return chat.whole(head_of(CHAT, body, body.n, job, status, "default"), fold(events), end)


def _completion(
    body: CompletionBody, job: str, status: ModelStatus, events: Sequence[Event], end: Finished
) -> dict[str, Any]:
    head = head_of(COMPLETION, body, len(body.prompt) * body.n, job, status, "default")
    return completions.whole(head, fold(events), end)


def _embedding(
    body: EmbeddingBody, job: str, status: ModelStatus, events: Sequence[Event], end: Finished
) -> dict[str, Any]:
    return embeddings.whole(body, body.model or status.name, fold(events), end)


def _response(
    body: BatchedResponseBody, job: str, status: ModelStatus, events: Sequence[Event], end: Finished
) -> dict[str, Any]:
    return batched.whole(body, job, status, events)


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(ChatCompletionBody, chat.to_request, _chat),
    "/v1/completions": Endpoint(CompletionBody, completions.to_request, _completion),
    "/v1/embeddings": Endpoint(EmbeddingBody, embeddings.to_request, _embedding),
    "/v1/responses": Endpoint(BatchedResponseBody, batched.to_request, _response),
}
"""By their paths."""
