"""Embeddings: `POST /api/embed`, and the older `POST /api/embeddings`."""

from __future__ import annotations

import array
import sys
from typing import Any

from api.ollama.schemas import EmbedBody, EmbeddingsBody
from api.ollama.translate.answer import Head, counts
from tasks.events import Finished, Reply
from tasks.requests import EmbedRequest


def to_request(body: EmbedBody) -> EmbedRequest:
    """What the body asks for, in the shared vocabulary."""
    return EmbedRequest(body.input, body.dimensions, "truncate" if body.truncate else "refuse")


def to_one_request(body: EmbeddingsBody) -> EmbedRequest:
    """What a body of the older way asks for."""
    return EmbedRequest((body.prompt,), overflow="truncate")


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """A vector for each input, in their order."""
    spent = counts(end)
    return {
        "model": head.model,
        "embeddings": [_vector(reply, index) for index in sorted(reply.vectors)],
        "total_duration": spent["total_duration"],
        "load_duration": spent["load_duration"],
        "prompt_eval_count": spent["prompt_eval_count"],
    }


def one(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """The vector of the one input, the older way."""
    return {"embedding": _vector(reply, 0)}


def _vector(reply: Reply, index: int) -> list[float]:
    numbers = array.array("f", reply.vectors[index])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
