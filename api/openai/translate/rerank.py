"""Reranking, as Jina and Cohere shaped it, or Text Embeddings Inference: `POST /v1/rerank`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from api.openai.reading_schemas import RerankBody, RerankTextsBody
from api.openai.translate.embeddings import reading_usage
from tasks.events import Finished, Reply
from tasks.requests import RerankRequest


def to_request(body: RerankBody | RerankTextsBody) -> RerankRequest:
    """What the body asks for, in the shared vocabulary."""
    documents = body.documents if isinstance(body, RerankBody) else body.texts
    return RerankRequest(query=body.query, documents=documents)


@dataclass(frozen=True, slots=True)
class Head:
    """How a ranking is said: as which job's, of which model, how many of the best documents, with their texts where they are
    asked for, and whether as Text Embeddings Inference says it."""

    job: str
    model: str
    top_n: int | None
    documents: tuple[str, ...] | None
    inference: bool


def head_of(body: RerankBody | RerankTextsBody, job: str, model: str) -> Head:
    """That of the answer to `body`, given as a job by a model of that name."""
    if isinstance(body, RerankBody):
        return Head(job, body.model or model, body.top_n, body.documents if body.return_documents else None, False)
    return Head(job, body.model or model, body.top_n, body.texts if body.return_text else None, True)


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any] | list[dict[str, Any]]:
    """The answer: the best documents, the best one first."""
    ranked = sorted(reply.scores, key=lambda index: (-reply.scores[index], index))[: head.top_n]
    if head.inference:
        return [
            {"index": index, "score": reply.scores[index]}
            | ({"text": head.documents[index]} if head.documents is not None else {})
            for index in ranked
        ]
    results = [
        {"index": index, "relevance_score": reply.scores[index]}
        | ({"document": {"text": head.documents[index]}} if head.documents is not None else {})
        for index in ranked
    ]
    return {
        "id": f"rerank-{head.job}",
        "object": "list",
        "model": head.model,
        "results": results,
        "usage": reading_usage(end.usage),
        # Where clients of Cohere look for the same.
        "meta": {"tokens": {"input_tokens": end.usage.prompt_tokens, "output_tokens": 0}},
    }
