"""Batch items that share runs of the NPU's engine, from HTTP to C and back, with the simulator in the library's place."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from npu.simulator import Profile, SimulatedModel
from tests.oracle import Oracle
from tests.stack import LIMIT, Stack, eventually

ITEMS = 16
MODEL = SimulatedModel(profile=Profile(prefill_tps=2000, decode_tps=100))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One board whose model answers four prompts by one run."""
    stack = Stack({}, rkllm_library="simulator", default_model="four", board=True)
    stack.add_simulated("four", MODEL, "[engine_options]\nn_batch = 4")
    with stack:
        yield stack


def text_of(number: int) -> str:
    return f"Item {number}: " + "word " * (number % 7)


def submit(client: openai.OpenAI, count: int) -> str:
    """A batch of so many, of different lengths; its id."""
    lines = (
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "four",
                "messages": [{"role": "user", "content": text_of(number)}],
                "max_tokens": 40 + number,
            },
        }
        for number in range(count)
    )
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = client.files.create(file=("items.jsonl", io.BytesIO(data)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def results(client: openai.OpenAI, batch: str) -> dict[int, dict[str, Any]]:
    """Each answered line by its number, once the batch is over."""
    eventually(
        lambda: client.batches.retrieve(batch).status == "completed", limit=2 * LIMIT, what="a batch that is over"
    )
    ended = client.batches.retrieve(batch)
    assert ended.request_counts is not None and ended.request_counts.failed == 0 and ended.output_file_id is not None
    lines = client.files.content(ended.output_file_id).text.splitlines()
    found = {int(line["custom_id"]): line for line in map(json.loads, lines)}
    assert len(lines) == len(found)
    return found


def test_items_share_runs_and_are_answered_as_alone(stack: Stack) -> None:
    """Whatever happens meanwhile: a chat comes first, twice, and the engine is killed in the middle of a run."""
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused")
    oracle = Oracle(stack.folder / "models" / "four", MODEL)
    assert chat(stack, "Good morning") == oracle.ask("Good morning", most=20)[0]
    batch = submit(client, ITEMS)
    for number in range(2):
        shares_a_run(stack)
        if number:
            stack.child("four").kill()
        text = f"A question in between, the {number}"
        assert chat(stack, text) == oracle.ask(text, most=20)[0]
    found = results(client, batch)
    for number in range(ITEMS):
        body = found[number]["response"]["body"]
        wanted, _, count = oracle.ask(text_of(number), most=40 + number)
        assert (body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"]) == (wanted, count)
    together = [line["served"]["together"] for line in found.values()]
    print(together)
    assert max(together) == 4 and sum(each > 1 for each in together) > ITEMS / 3


def chat(stack: Stack, text: str) -> str:
    body = {"model": "four", "messages": [{"role": "user", "content": text}], "max_tokens": 20}
    reply = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT).json()
    return str(reply["choices"][0]["message"]["content"])


def shares_a_run(stack: Stack) -> None:
    """Wait until several items are being answered at once, which one board does by one run alone."""

    def several() -> bool:
        jobs = httpx.get(f"{stack.url}/v1/jobs?state=running", timeout=LIMIT).json()["data"]
        return sum(job["lane"] == "batch" and job["phase"] == "decode" for job in jobs) > 1

    eventually(several, what="several at once")
