"""Embeddings: `POST /v1/embeddings`."""

from __future__ import annotations

import array
import base64
import sys
from dataclasses import dataclass
from typing import Any, Literal

from api.openai.reading_schemas import EmbeddingBody
from tasks.events import Finished, Reply, Usage
from tasks.requests import EmbedRequest


def to_request(body: EmbeddingBody) -> EmbedRequest:
    """What the body asks for, in the shared vocabulary."""
    return EmbedRequest(inputs=body.input, dimensions=body.dimensions)


@dataclass(frozen=True, slots=True)
class Head:
    """How vectors are said: of which model, in which form, and how many of them."""

    model: str
    encoding: Literal["float", "base64"]
    inputs: int


def head_of(body: EmbeddingBody, model: str) -> Head:
    """That of the answer to `body`, given by a model of that name."""
    return Head(body.model or model, body.encoding_format, len(body.input))


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer: a vector for each input, in their order."""
    say = _base64 if head.encoding == "base64" else _floats
    data = [
        {"object": "embedding", "index": index, "embedding": say(reply.vectors[index])} for index in range(head.inputs)
    ]
    return {"object": "list", "data": data, "model": head.model, "usage": reading_usage(end.usage)}


def reading_usage(counts: Usage) -> dict[str, int]:
    """Tokens of a request that was only read."""
    return {"prompt_tokens": counts.prompt_tokens, "total_tokens": counts.prompt_tokens}


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
