"""Embeddings through the whole service, with the official client and without."""

from __future__ import annotations

import math

import httpx
import openai
import pytest

from tests.e2e.test_cancellation import jobs_of, until_state
from tests.stack import LIMIT, Stack, eventually, raw_request

TEXTS = ["Grüße, 世界! 👋🏽", "The cat sat on the mat.", "x"]


def post(stack: Stack, **body: object) -> httpx.Response:
    return httpx.post(f"{stack.url}/v1/embeddings", json={"model": "echo", **body}, timeout=LIMIT)


def test_the_official_client(openai_client: openai.OpenAI) -> None:
    """It asks for base64 by itself, and gets floats when it asks for those; the same numbers, of length 1."""
    packed = openai_client.embeddings.create(model="echo", input=TEXTS)
    plain = openai_client.embeddings.create(model="echo", input=TEXTS, encoding_format="float")
    assert [item.embedding for item in packed.data] == [item.embedding for item in plain.data]
    assert [(item.index, item.object) for item in packed.data] == [(0, "embedding"), (1, "embedding"), (2, "embedding")]
    for item in packed.data:
        assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-6)
    count = sum(len(text.encode()) + 1 for text in TEXTS)
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (count, count)
    assert (packed.object, packed.model) == ("list", "echo")


def test_one_text_alone_is_the_same_as_among_others(openai_client: openai.OpenAI) -> None:
    """As a string, in a list, and as the tokens it has."""
    among = openai_client.embeddings.create(model="echo", input=TEXTS).data[1].embedding
    assert openai_client.embeddings.create(model="echo", input=TEXTS[1]).data[0].embedding == among
    ids = [256, *TEXTS[1].encode()]
    assert openai_client.embeddings.create(model="echo", input=ids).data[0].embedding == among
    assert openai_client.embeddings.create(model="echo", input=[ids, ids]).data[1].embedding == among


def test_dimensions(openai_client: openai.OpenAI) -> None:
    """The first ones, scaled anew; too many are refused by name."""
    whole = openai_client.embeddings.create(model="echo", input="hello").data[0].embedding
    short = openai_client.embeddings.create(model="echo", input="hello", dimensions=8).data[0].embedding
    length = math.hypot(*whole[:8])
    assert short == pytest.approx([number / length for number in whole[:8]], abs=1e-6)
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.embeddings.create(model="echo", input="hello", dimensions=65)
    assert (refused.value.param, refused.value.code) == ("dimensions", "unsupported_parameter")
    assert "64" in refused.value.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": 5}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
    ids=str,
)
def test_wrong_input(stack: Stack, body: dict[str, object], param: str) -> None:
    """A 400 at the field, before there is a job."""
    reply = post(stack, **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_what_no_model_can_read(stack: Stack) -> None:
    """Too long, or outside the vocabulary: 400 with what is wrong."""
    reply = post(stack, input=["short", "x" * 9000])
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "9001" in reply.json()["error"]["message"]
    reply = post(stack, input=[99999])
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_prompt")


def test_a_batch_is_one_job(stack: Stack) -> None:
    """Which can be looked at like any other."""
    reply = post(stack, input=["word"] * 500)
    assert [item["index"] for item in reply.json()["data"]] == list(range(500))
    job = httpx.get(f"{stack.url}/v1/jobs/{reply.headers['x-job-id']}", timeout=LIMIT).json()
    assert (job["kind"], job["state"]) == ("embedding", "finished")
    assert (job["usage"]["prompt_tokens"], job["usage"]["completion_tokens"]) == (2500, 0)


def test_a_client_that_leaves_stops_it(stack: Stack) -> None:
    """In the middle of a text; the next request is answered."""
    before = jobs_of(stack, "ponderous")
    body = b'{"model": "ponderous", "input": ["' + b"x" * 5000 + b'"]}'
    with raw_request(stack.url, body, "/v1/embeddings"):
        [job] = eventually(lambda: jobs_of(stack, "ponderous") - before, what="a job")
        until_state(stack, job, "running")
    assert until_state(stack, job, "cancelled")["kind"] == "embedding"
    assert post(stack, model="ponderous", input="x").status_code == 200


def test_what_a_model_can_is_on_its_card_and_nothing_else_is_asked_of_it(stack: Stack) -> None:
    """Neither vectors of one that writes, nor answers of one that embeds."""
    found = models(stack)
    assert found["writer"]["capabilities"] == ["completion", "chat"]
    assert found["reader"]["capabilities"] == ["embedding"]
    assert found["reader"]["meta"]["embedding_length"] == 64
    refused = post(stack, model="writer", input="hi")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_model", "model")
    assert "'writer' cannot embed" in error["message"]
    chat = {"model": "reader", "messages": [{"role": "user", "content": "hi"}]}
    refused = httpx.post(f"{stack.url}/v1/chat/completions", json=chat, timeout=LIMIT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_model")
    assert post(stack, model="reader", input="hi").status_code == 200


def models(stack: Stack) -> dict[str, dict[str, object]]:
    listed = httpx.get(f"{stack.url}/v1/models", timeout=LIMIT).json()["data"]
    return {model["id"]: model for model in listed}
