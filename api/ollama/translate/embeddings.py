"""Embeddings: `POST /api/embed`, and the older `POST /api/embeddings`."""

from __future__ import annotations

import array
import sys
from typing import Any

from api.ollama.schemas import EmbedBody
from api.ollama.translate.answer import counts
from tasks.events import Finished, Reply
from tasks.requests import EmbedRequest


def to_request(body: EmbedBody) -> EmbedRequest:
    """What the body asks for, in the shared vocabulary."""
    return EmbedRequest(body.input, body.dimensions, "truncate" if body.truncate else "refuse")


def whole(body: EmbedBody, reply: Reply, end: Finished) -> dict[str, Any]:
    """A vector for each input, in their order."""
    spent = counts(end)
    return {
        "model": body.model,
        "embeddings": [vector(reply, index) for index in range(len(body.input))],
        "total_duration": spent["total_duration"],
        "load_duration": spent["load_duration"],
        "prompt_eval_count": spent["prompt_eval_count"],
    }


def vector(reply: Reply, index: int) -> list[float]:
    """One vector as numbers."""
    numbers = array.array("f", reply.vectors[index])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
