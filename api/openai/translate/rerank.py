"""Reranking, as Jina and Cohere shaped it, or Text Embeddings Inference: `POST /v1/rerank`."""

from __future__ import annotations

from typing import Any

from api.openai.reading_schemas import RerankBody, RerankTextsBody
from api.openai.translate.embeddings import reading_usage
from tasks.events import Finished, Reply
from tasks.requests import RerankRequest


def to_request(body: RerankBody | RerankTextsBody) -> RerankRequest:
    """What the body asks for, in the shared vocabulary."""
    documents = body.documents if isinstance(body, RerankBody) else body.texts
    return RerankRequest(query=body.query, documents=documents)


def whole(body: RerankBody, job: str, model: str, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer: the best documents, the best one first."""
    results: list[dict[str, Any]] = []
    for index in _ranked(reply)[: body.top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": reply.scores[index]}
        results.append(result | {"document": {"text": body.documents[index]}} if body.return_documents else result)
    return {
        "id": f"rerank-{job}",
        "object": "list",
        "model": model,
        "results": results,
        "usage": reading_usage(end.usage),
        # Where clients of Cohere look for the same.
        "meta": {"tokens": {"input_tokens": end.usage.prompt_tokens, "output_tokens": 0}},
    }


def scores(body: RerankTextsBody, reply: Reply) -> list[dict[str, Any]]:
    """The answer to a body with `texts`: the best one first."""
    return [
        {"index": index, "score": reply.scores[index]} | ({"text": body.texts[index]} if body.return_text else {})
        for index in _ranked(reply)[: body.top_n]
    ]


def _ranked(reply: Reply) -> list[int]:
    return sorted(reply.scores, key=lambda index: (-reply.scores[index], index))
