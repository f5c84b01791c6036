"""Reranking in each form that clients have for it."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.events import Finished, FinishReason, Scored, Timings, Usage
from tasks.requests import RerankRequest
from tests.api.scripted import JOB
from tests.api.site import Site

TEXTS = ["a", {"text": "b"}, "c"]


@pytest.fixture
def place(place: Site) -> Site:
    """A server whose model scores three documents."""
    end = Finished(FinishReason.STOP, Usage(30, 0), Timings())
    place.relay.play(Scored(0, 0.25), Scored(1, 0.75), Scored(2, 0.5), end)
    return place


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/api/rerank", "/reranking", "/v1/reranking"])
def test_as_jina_and_cohere_shaped_it(place: Site, path: str) -> None:
    """At every path that one of their clients knows."""
    body = {"query": "q", "documents": TEXTS, "top_n": 2, "return_documents": True}
    assert place.http.post(path, json=body).json() == {
        "id": f"rerank-{JOB}",
        "object": "list",
        "model": "tiny",
        "results": [
            {"index": 1, "relevance_score": 0.75, "document": {"text": "b"}},
            {"index": 2, "relevance_score": 0.5, "document": {"text": "c"}},
        ],
        "usage": {"prompt_tokens": 30, "total_tokens": 30},
        "meta": {"tokens": {"input_tokens": 30, "output_tokens": 0}},
    }
    assert place.relay.calls[-1].request == RerankRequest("q", ("a", "b", "c"))


def test_as_text_embeddings_inference_shaped_it(place: Site) -> None:
    """A body with `texts` is answered with a list."""
    reply = place.http.post("/rerank", json={"query": "q", "texts": ["a", "b", "c"]})
    assert reply.json() == [{"index": 1, "score": 0.75}, {"index": 2, "score": 0.5}, {"index": 0, "score": 0.25}]
    assert reply.headers["x-job-id"] == JOB
    best = place.http.post("/rerank", json={"query": "q", "texts": ["a", "b", "c"], "top_n": 1, "return_text": True})
    assert best.json() == [{"index": 1, "score": 0.75, "text": "b"}]


@pytest.mark.parametrize("name", ["documents", "texts"])
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"raw_scores": True}, "raw_scores", "unsupported_parameter"),
        ({"max_tokens_per_doc": 512}, "max_tokens_per_doc", "unsupported_parameter"),
        ({"rank_fields": ["title"]}, "rank_fields", "unsupported_parameter"),
        ({"query": None}, "query", "missing_required_parameter"),
        ({"top_n": 0}, "top_n", "invalid_value"),
    ],
)
def test_what_cannot_be_honoured(place: Site, name: str, fields: dict[str, Any], param: str, code: str) -> None:
    """In either form, by its name."""
    error = place.http.post("/v1/rerank", json={"query": "q", name: ["a"]} | fields).json()["error"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("texts", [None, [], [""], "a", [{"title": "a"}]])
def test_texts_are_texts(place: Site, texts: Any) -> None:
    """As documents are; without either of them, documents are missed."""
    error = place.http.post("/v1/rerank", json={"query": "q", "texts": texts}).json()["error"]
    assert (error["param"], error["code"]) == (
        ("texts", "invalid_value") if texts is not None else ("texts", "missing_required_parameter")
    )
    error = place.http.post("/v1/rerank", json={"query": "q"}).json()["error"]
    assert (error["param"], error["code"]) == ("documents", "missing_required_parameter")
