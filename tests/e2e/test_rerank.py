"""Reranking through the whole service."""

from __future__ import annotations

import httpx
import pytest

from tests.stack import LIMIT, Stack

QUERY = "the cat on the mat"
DOCUMENTS = ["Quarterly revenue grew by 12 %.", "The cat sat on the mat.", "A dog."]


def post(stack: Stack, path: str = "/v1/rerank", **body: object) -> httpx.Response:
    return httpx.post(f"{stack.url}{path}", json={"model": "echo", **body}, timeout=LIMIT)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_the_best_comes_first(stack: Stack, path: str) -> None:
    """With its place in the request; the usage is that of all prompts."""
    reply = post(stack, path, query=QUERY, documents=DOCUMENTS)
    found = reply.json()
    assert found["results"][0]["index"] == 1
    scores = [result["relevance_score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > sum(map(len, DOCUMENTS))
    assert found["id"] == f"rerank-{reply.headers['x-job-id']}"
    job = httpx.get(f"{stack.url}/v1/jobs/{reply.headers['x-job-id']}", timeout=LIMIT).json()
    assert (job["kind"], job["state"]) == ("rerank", "finished")


def test_only_the_best_and_with_their_texts(stack: Stack) -> None:
    """Documents may be objects; without asking, their texts do not come back."""
    documents = [{"text": text} for text in DOCUMENTS]
    [best] = post(stack, query=QUERY, documents=documents, top_n=1, return_documents=True).json()["results"]
    assert best["document"] == {"text": DOCUMENTS[1]}
    assert "document" not in post(stack, query=QUERY, documents=documents).json()["results"][0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a", ""]}, "documents"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents"),
        ({"query": "q", "documents": ["x"] * 2049}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
    ],
    ids=str,
)
def test_wrong_input(stack: Stack, body: dict[str, object], param: str) -> None:
    """A 400 at the field, before there is a job."""
    reply = post(stack, **body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_document_that_does_not_fit(stack: Stack) -> None:
    reply = post(stack, query="q", documents=["a", "x" * 9000])
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
