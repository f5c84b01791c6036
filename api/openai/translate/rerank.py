"""Reranking, as Jina and Cohere shaped it: `POST /v1/rerank`."""

from __future__ import annotations

from typing import Any

from api.openai.reading_schemas import RerankBody
from api.openai.translate.embeddings import reading_usage
from tasks.events import Finished, Reply
from tasks.requests import RerankRequest


def to_request(body: RerankBody) -> RerankRequest:
    """What the body asks for, in the shared vocabulary."""
    return RerankRequest(query=body.query, documents=body.documents)


def whole(body: RerankBody, job: str, model: str, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer: the best documents, the best one first."""
    ranked = sorted(range(len(body.documents)), key=lambda index: (-reply.scores[index], index))
    results: list[dict[str, Any]] = []
    for index in ranked[: body.top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": reply.scores[index]}
        results.append(result | {"document": {"text": body.documents[index]}} if body.return_documents else result)
    return {
        "id": f"rerank-{job}",
        "object": "list",
        "model": model,
        "results": results,
        "usage": reading_usage(end.usage),
    }
