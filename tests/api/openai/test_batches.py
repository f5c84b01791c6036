"""Batches over a real API, a real Valkey and real workers: made, watched and collected by the official client."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from api.openai import feeder
from tasks import keys
from tests.fakes.standing import Standing
from tests.stack import LIMIT, Stack, eventually


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Standing:
    """Has answers stand still."""
    return Standing(tmp_path_factory.mktemp("standing"))


@pytest.fixture(scope="module")
def stack(standing: Standing) -> Iterator[Stack]:
    """Two models on one board, fast ones; who feeds a batch and dies holds it for four seconds."""
    models = {name: {"tokens_per_second": 5000.0} for name in ("echo", "other")}
    running = Stack(models, lease=4.0)
    running.preload(standing.environment)
    with running:
        yield running


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=stack.url + "/v1", api_key="none", max_retries=0)


def chat(custom_id: str, text: str, model: str = "echo", **more: Any) -> dict[str, Any]:
    """One line of an input."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 64, **more}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def jsonl(*lines: Any) -> bytes:
    """Lines as a file."""
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


def submit(client: openai.OpenAI, data: bytes, endpoint: str = "/v1/chat/completions", **more: Any) -> Any:
    """A batch over this input."""
    file = client.files.create(file=("input.jsonl", io.BytesIO(data)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        **more,  # type: ignore[arg-type]
    )


def ended(client: openai.OpenAI, batch: str) -> Any:
    """The batch once it is over."""
    over = ("completed", "failed", "cancelled", "expired")
    return eventually(
        lambda: (found := client.batches.retrieve(batch)).status in over and found, what="the batch's end"
    )


def answers(client: openai.OpenAI, file: str | None) -> dict[str, Any]:
    """The lines of a file by their custom_ids; each is there once."""
    assert file is not None
    lines = [json.loads(line) for line in client.files.content(file).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def test_the_walk_through_of_the_official_client(client: openai.OpenAI) -> None:
    """Upload, create, poll, download: each request is answered as its endpoint would have answered it."""
    batch = submit(client, jsonl(*(chat(f"r{n}", f"Say {n}", n=1 + n % 2) for n in range(20))), metadata={"job": "x"})
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/chat/completions")
    batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (20, 20, 0)
    assert batch.metadata == {"job": "x"}
    assert batch.error_file_id is None
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    found = answers(client, batch.output_file_id)
    direct = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "Say 3"}], max_tokens=64, n=2
    )
    body = found["r3"]["response"]["body"]
    assert [choice["message"]["content"] for choice in body["choices"]] == [
        choice.message.content for choice in direct.choices
    ]
    assert (found["r3"]["response"]["status_code"], found["r3"]["error"]) == (200, None)
    assert found["r3"]["id"].startswith("batch_req_")
    assert found["r3"]["served"]["board"] == "test-board"
    used = [line["response"]["body"]["usage"] for line in found.values()]
    assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in used)
    assert len(found) == 20
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert batch.id in [each.id for each in client.batches.list()]


def test_what_a_line_is_refused_for_is_in_the_error_file(client: openai.OpenAI) -> None:
    """With the status and the words its endpoint has for it; the other lines are answered."""
    batch = ended(client, submit(client, jsonl(chat("good", "Hi"), chat("long", "word " * 9000))).id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 1)
    refused = answers(client, batch.error_file_id)["long"]
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert set(answers(client, batch.output_file_id)) == {"good"}


def test_several_models_and_other_endpoints(client: openai.OpenAI) -> None:
    """One file may ask several models; a BOM, blank lines, CRLF and a missing last newline do no harm."""
    lines = jsonl(chat("a", "x"), b"\r\n", chat("b", "x", "other"))
    data = b"\xef\xbb\xbf" + lines.replace(b"}\n", b"}\r\n").rstrip()
    found = answers(client, ended(client, submit(client, data).id).output_file_id)
    assert {name: line["response"]["body"]["model"] for name, line in found.items()} == {"a": "echo", "b": "other"}
    body = {"model": "echo", "prompt": ["one", "two"], "max_tokens": 4}
    line = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": body}
    found = answers(client, ended(client, submit(client, jsonl(line), "/v1/completions").id).output_file_id)
    assert [choice["index"] for choice in found["c"]["response"]["body"]["choices"]] == [0, 1]


def response(custom_id: str, **fields: Any) -> dict[str, Any]:
    """One line of an input whose endpoint is that of responses."""
    body = {"model": "echo", "input": "Say it", "max_output_tokens": 64, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/responses", "body": body}


def test_responses_in_a_batch(client: openai.OpenAI) -> None:
    """Each is what its endpoint would have given, but that it stands for itself."""
    batch = ended(client, submit(client, jsonl(response("r")), "/v1/responses").id)
    body = answers(client, batch.output_file_id)["r"]["response"]["body"]
    direct = client.responses.create(model="echo", input="Say it", max_output_tokens=64)
    assert (body["status"], body["output"][0]["content"][0]["text"]) == ("completed", direct.output_text)
    assert (body["store"], batch.usage.total_tokens) == (False, direct.usage.total_tokens)  # type: ignore[union-attr]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(body["id"])
    alone = [
        response("a", previous_response_id=direct.id),
        response("b", background=True),
        response("c", input=[{"id": "x"}]),
    ]
    twice = [{"type": "function", "name": "f"}] * 2
    batch = ended(client, submit(client, jsonl(*alone, response("d", tools=twice)), "/v1/responses").id)
    assert batch.status == "failed"
    assert [(error.line, error.param) for error in batch.errors.data] == [
        (1, "body.previous_response_id"),
        (2, "body.background"),
        (3, "body.input"),
        (4, "body.tools"),
    ]


BAD: dict[str, tuple[bytes, list[tuple[str, int | None]]]] = {
    "empty": (b"", [("empty_file", None)]),
    "blank": (b"\n \n", [("empty_file", None)]),
    "no JSON": (jsonl(chat("a", "x"), b"{nonsense\n"), [("invalid_json_line", 2)]),
    "not UTF-8": (jsonl(chat("a", "x"), b'{"custom_id": "\xff"}\n'), [("invalid_json_line", 2)]),
    "no object": (b"[1]\n", [("invalid_json_line", 1)]),
    "no name": (jsonl({**chat("a", "x"), "custom_id": None}), [("missing_required_parameter", 1)]),
    "twice": (jsonl(chat("a", "x"), chat("b", "x"), chat("a", "y")), [("duplicate_custom_id", 3)]),
    "method": (jsonl({**chat("a", "x"), "method": "GET"}), [("invalid_method", 1)]),
    "url": (jsonl({**chat("a", "x"), "url": "/v1/embeddings"}), [("mismatched_url", 1)]),
    "body": (jsonl({**chat("a", "x"), "body": []}), [("missing_required_parameter", 1)]),
    "value": (jsonl(chat("a", "x", temperature=9)), [("invalid_value", 1)]),
    "field": (jsonl(chat("a", "x"), chat("b", "x", tool_choice="required")), [("invalid_value", 2)]),
    "model": (
        jsonl(chat("a", "x"), chat("b", "x", "gone"), chat("c", "x", "gone")),
        [("model_not_found", n) for n in (2, 3)],
    ),
    "far down": (
        jsonl(*(chat(str(n), "x", "echo" if n != 7031 else "gone") for n in range(1, 7100))),
        [("model_not_found", 7031)],
    ),
    "long": (jsonl(chat("a", "x"), b" " * 5 + b"x" * 11_000_000 + b"\n", chat("b", "x")), [("line_too_long", 2)]),
}


@pytest.mark.parametrize("name", BAD)
def test_an_input_that_is_wrong_fails_as_a_whole(client: openai.OpenAI, name: str) -> None:
    """Before anything is run, and each line at fault is named."""
    data, problems = BAD[name]
    batch = ended(client, submit(client, data).id)
    assert batch.status == "failed"
    assert [(each.code, each.line) for each in batch.errors.data] == problems
    assert batch.output_file_id is None


def test_what_cannot_be_a_batch_is_refused_at_once(client: openai.OpenAI) -> None:
    """With the field at fault."""
    file = client.files.create(file=("x", b"{}"), purpose="batch").id
    wrong = client.files.create(file=("x", b"{}"), purpose="evals").id
    for param, call in (
        ("endpoint", {"input_file_id": file, "endpoint": "/v1/images", "completion_window": "24h"}),
        ("input_file_id", {"input_file_id": "file-none", "endpoint": "/v1/completions", "completion_window": "24h"}),
        ("input_file_id", {"input_file_id": wrong, "endpoint": "/v1/completions", "completion_window": "24h"}),
        ("completion_window", {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "soon"}),
        (
            "metadata",
            {
                "input_file_id": file,
                "endpoint": "/v1/completions",
                "completion_window": "1h",
                "metadata": {str(n): "" for n in range(17)},
            },
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**call)  # type: ignore[arg-type]
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_the_same_call_sent_again_makes_one_batch(client: openai.OpenAI) -> None:
    """By its idempotency key; another call under that key is refused."""
    file = client.files.create(file=("x", jsonl(chat("a", "x"))), purpose="batch").id
    made = {
        client.batches.create(
            input_file_id=file,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "once"},
        ).id
        for _ in range(3)
    }
    assert len(made) == 1
    with pytest.raises(openai.ConflictError) as caught:
        client.batches.create(
            input_file_id=file,
            endpoint="/v1/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "once"},
        )
    assert caught.value.code == "idempotency_key_reused"


def test_the_same_call_sent_again_makes_one_job(client: openai.OpenAI, stack: Stack) -> None:
    """By its idempotency key, also while its model is not there any more; another call under that key is refused."""
    body: dict[str, Any] = {
        "endpoint": "/v1/chat/completions",
        "body": {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]},
    }

    def ask(key: str, **changed: Any) -> httpx.Response:
        return httpx.post(f"{stack.url}/v1/jobs", json=body | changed, headers={"Idempotency-Key": key}, timeout=LIMIT)

    with ThreadPoolExecutor(4) as clients:
        assert len({reply.json()["id"] for reply in clients.map(ask, ["at once"] * 4)}) == 1
    first, again, other = ask("a"), ask("a"), ask("b")
    assert [reply.status_code for reply in (first, again, other)] == [202] * 3
    assert again.json()["id"] == again.headers["x-job-id"] == first.json()["id"] != other.json()["id"]
    assert again.json()["links"] == first.json()["links"]
    refused = ask("a", lane="batch")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert ask("x" * 256).json()["error"]["param"] == "idempotency-key"
    cards = stack.redis.hgetall(keys.CARDS)
    more = itertools.count()

    def gone() -> bool:
        stack.redis.delete(keys.CARDS)  # its board may have told of it anew
        return ask(f"c{next(more)}").status_code == 404

    try:
        eventually(gone, what="a model that is gone")
        assert ask("a").json()["id"] == first.json()["id"]
    finally:
        stack.redis.hset(keys.CARDS, mapping=cards)


def test_a_cancelled_batch_runs_no_more_and_tells_what_it_did_not(client: openai.OpenAI, stack: Stack) -> None:
    """What was answered can be downloaded; and its input cannot be deleted before."""
    stack.add_model("slow", {"tokens_per_second": 30.0})
    eventually(lambda: "slow" in [model.id for model in client.models.list()])
    batch = submit(client, jsonl(*(chat(f"r{n}", "many words to say", "slow") for n in range(40))))
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0)
    with pytest.raises(openai.ConflictError):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    done, not_run = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
    assert set(done) | set(not_run) == {f"r{n}" for n in range(40)}
    assert not set(done) & set(not_run)
    assert {line["error"]["code"] for line in not_run.values()} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    assert client.files.delete(batch.input_file_id).deleted


def test_a_feeder_that_is_killed_loses_and_repeats_nothing(
    client: openai.OpenAI, stack: Stack, standing: Standing
) -> None:
    """The API process dies in the middle, twice, with answers written that it had not counted yet."""
    with standing.at(32):  # so that the second half of them waits, whose answers are longer
        batch = submit(client, jsonl(*(chat(f"r{n}", f"{n} " * (5 if n < 200 else 20)) for n in range(400))))
        for share in (50, 150):
            eventually(lambda share=share: client.batches.retrieve(batch.id).request_counts.completed > share)
            stack.kill("api")
            for path in (stack.folder / "data" / "files").glob("file-*"):
                if path.stat().st_size and path.name != batch.input_file_id:
                    with path.open("ab") as file:
                        file.write(b'{"custom_id": "r1", "half')
            stack.start("api")
            eventually(stack.alive)
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.total) == ("completed", 400, 400)
    found = answers(client, batch.output_file_id)
    assert set(found) == {f"r{n}" for n in range(400)}
    for n in random.Random(1).sample(range(400), 20):
        assert f"{n} " in found[f"r{n}"]["response"]["body"]["choices"][0]["message"]["content"]


def test_nothing_stays_of_a_batch_but_its_files(client: openai.OpenAI, stack: Stack) -> None:
    """The records of its items go as soon as their lines are on the disk."""
    batch = ended(client, submit(client, jsonl(*(chat(f"r{n}", "x") for n in range(feeder.MOST_AHEAD)))).id)
    assert batch.request_counts.completed == feeder.MOST_AHEAD
    assert stack.redis.exists(f"rl:batch:{batch.id}:items") == 0
    jobs = [line["response"]["request_id"] for line in answers(client, batch.output_file_id).values()]
    assert not any(stack.redis.exists(f"rl:{{{job}}}", f"rl:{{{job}}}:events") for job in jobs)
