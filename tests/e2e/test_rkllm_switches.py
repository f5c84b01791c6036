"""However the vendor's library does what nobody has documented, on every family: the whole service answers the same.

The simulator has a switch for each open question. All their combinations would be half a million for each family; what goes
wrong is nearly always between two of them, so every two meet here at least once, and each with every family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import httpx
import pytest

from npu.rkllm.abi import FAMILIES, Answer, Capabilities, family_of
from npu.simulator import SWITCHES, Adapter, Profile, SimulatedModel, write_adapter
from tests.covering import Row, covering_rows
from tests.e2e.test_cancellation import until_state
from tests.oracle import Oracle
from tests.stack import LIMIT, Stack, eventually

FACTORS = {
    "runtime": tuple(family.RUNTIMES[-1] for family in FAMILIES),
    # Without it no prompt is compared with the cache, so conversations are kept in another way.
    "full_attention": ("yes", "no"),
    **SWITCHES,
}
NEEDS: dict[str, Callable[[Capabilities], bool]] = {
    "full_attention": lambda can: can.prefix_reuse,
    "running_polarity": lambda can: can.running_value is None,
    "return_two_before_1_3": lambda can: Answer.PAUSE in can.answers and Answer.RELEASE not in can.answers,
    "history_zero_clears": lambda can: can.keep_history,
    "after_pause": lambda can: Answer.PAUSE in can.answers,
    "last_token_cached": lambda can: can.prefix_reuse,
    "adapter_keeps_cache": lambda can: can.prefix_reuse,
    "logits_rows": lambda can: can.logits,
    "prefill_counts_cached": lambda can: can.perf,
}
"""What a runtime must have for a factor to make a difference; every runtime has what the others need."""


def matters(factor: str, runtime: str) -> bool:
    return factor not in NEEDS or NEEDS[factor](family_of(runtime).CAPABILITIES)


ROWS = covering_rows(FACTORS, "runtime", matters)
USUAL = 14
"""Rows that are always run: the first ones have nearly all pairs, and the last ten only 6 in 100 that are new."""
LONG = "word " * 3000
ANSWERS = {**SimulatedModel().answers, "sea": LONG}
FRANCE = "What is the capital of France?"
TEXTS = ["Grüße, 世界! 👋🏽", "The cat sat on the mat.", "x"]
ADAPTERS, POET = '[adapters]\npoet = { file = "poet.gguf", scale = 0.5 }', Adapter("poet", 0.5)
QUERY, DOCUMENTS = "the cat on the mat", ["Quarterly revenue grew by 12 %.", "The cat sat on the mat.", "A dog."]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """An API and its queue; each test brings a worker, with the runtime of its own."""
    with Stack({}, board=False) as stack:
        yield stack


def test_every_two_ways_meet() -> None:
    """Counted anew: each pair of values in a row of a family that has both, and each value with every such family."""
    met = {frozenset(pair) for row in ROWS for pair in combinations(row.items(), 2)}
    for runtime in FACTORS["runtime"]:
        values = {**FACTORS, "runtime": (runtime,)}
        there = [(name, value) for name in FACTORS if matters(name, runtime) for value in values[name]]
        missing = [pair for pair in combinations(there, 2) if pair[0][0] != pair[1][0] and frozenset(pair) not in met]
        assert missing == []
    assert all(set(row) == {name for name in FACTORS if matters(name, row["runtime"])} for row in ROWS)
    usual = {frozenset(pair) for row in ROWS[:USUAL] for pair in combinations(row.items(), 2)}
    assert len(usual) > 0.94 * len(met)
    assert {setting for pair in usual for setting in pair} == {setting for pair in met for setting in pair}


class Client:
    """Asks the model of one row."""

    def __init__(self, stack: Stack, model: str) -> None:
        self.stack, self.model = stack, model

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(f"{self.stack.url}/v1/{path}", json={"model": self.model, **body}, timeout=LIMIT)

    def chat(self, *turns: str, **more: object) -> httpx.Response:
        roles = ("user", "assistant")
        messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
        return self.post("chat/completions", messages=messages, **more)

    def answer(self, *turns: str, **more: object) -> tuple[str, str, dict[str, Any]]:
        """Text, finish reason and usage."""
        reply = self.chat(*turns, **more)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"], reply.json()["usage"]


def case(number: int, row: Row) -> Any:
    return pytest.param(row, id=f"{number}-{row['runtime']}", marks=[] if number < USUAL else pytest.mark.full)


@pytest.mark.parametrize("row", [case(number, row) for number, row in enumerate(ROWS)])
def test_the_whole_service_answers_the_same(stack: Stack, row: Row) -> None:
    """Answers, usage and finish reasons to the token; leaving, further turns, adapters, seeds, vectors and scores."""
    runtime, name = row["runtime"], f"row-{ROWS.index(row)}"
    can = family_of(runtime).CAPABILITIES
    model = SimulatedModel(
        answers=ANSWERS,
        # Fast, and yet slow enough for its long answer to be left in the middle.
        profile=Profile(prefill_tps=4000, decode_tps=500),
        full_attention=row.get("full_attention") != "no",
        switches={switch: row[switch] for switch in SWITCHES if switch in row},
    )
    abilities = ["text", "embedding", *(["rerank"] if can.logits else [])]
    stack.add_simulated(name, model, f"abilities = {json.dumps(abilities)}\n{ADAPTERS}")
    write_adapter(stack.folder / "models" / name / "poet.gguf")
    stack.start("worker", name, rkllm_library=f"simulator-{runtime}")
    try:
        eventually(lambda: stack.state(name), what="a worker")
        oracle, client = Oracle(stack.folder / "models" / name, model), Client(stack, name)
        answers_are_exact(client, oracle)
        a_client_that_leaves_stops_it(client)
        further_turns_are_exact(client, oracle, row, can)
        adapters_are_applied(client, oracle)
        seeds_are_kept(client, oracle, can)
        vectors_and_scores_are_exact(client, oracle, can)
        assert runtime in httpx.get(f"{stack.url}/v1/models/{name}", timeout=LIMIT).text
        assert stack.log(f"worker {name}").count(f"loading {name}") == 1  # nothing of this broke it
    except BaseException:
        print(row, stack.log(f"worker {name}"), sep="\n")
        raise
    finally:
        stack.kill(f"worker {name}")


def answers_are_exact(client: Client, oracle: Oracle) -> None:
    for text in (FRANCE, "Hello there", "Grüße an den Fluss 😀"):
        wanted, prompt, count = oracle.ask(text)
        found, reason, usage = client.answer(text)
        assert (found, reason) == (wanted, "stop")
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, count)
    found, reason, usage = client.answer("Hello there", max_tokens=3)
    assert (found, reason, usage["completion_tokens"]) == (oracle.ask("Hello there", most=3)[0], "length", 3)
    found, reason, _ = client.answer(FRANCE, stop=["France", "unheard of"])
    assert (found, reason) == ("The capital of ", "stop")


def a_client_that_leaves_stops_it(client: Client) -> None:
    body = {"model": client.model, "stream": True, "messages": [{"role": "user", "content": "Tell me of the sea"}]}
    with httpx.stream("POST", f"{client.stack.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
        job = reply.headers["x-job-id"]
        next(line for line in reply.iter_lines() if re.search('"content":"[^"]', line))
    found = until_state(client.stack, job, "cancelled", "finished")
    assert found["state"] == "cancelled" and 0 < found["usage"]["completion_tokens"] < 3000


def further_turns_are_exact(client: Client, oracle: Oracle, row: Row, can: Capabilities) -> None:
    said, _, before = client.answer(FRANCE)
    turns = (FRANCE, said, "And what is 2 + 2?")
    wanted, prompt, count = oracle.ask(*turns)
    found, reason, usage = client.answer(*turns)
    assert (found, reason) == (wanted, "stop")
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, count)
    # What was read and said before is not read again, where the runtime can tell what it has.
    cached = before["prompt_tokens"] + before["completion_tokens"] if can.perf else 0
    # A run that was aborted tells it in its last word, if it has one; and one that said its end token may be aborted or not.
    unknown = {0} if row["state_after_abort"] != "finish" else set()
    assert usage["prompt_tokens_details"]["cached_tokens"] in {cached, *unknown}


def adapters_are_applied(client: Client, oracle: Oracle) -> None:
    """Before and after the model without one, which has none of it; and for answers only."""
    poet = Client(client.stack, f"{client.model}:poet")
    for asked, adapter in ((poet, POET), (client, None), (poet, POET)):
        assert asked.answer(FRANCE)[0] == oracle.ask(FRANCE, adapter=adapter)[0]
        assert asked.answer("Hello there")[0] == oracle.ask("Hello there", adapter=adapter)[0]
    listed = httpx.get(f"{client.stack.url}/v1/models", timeout=LIMIT).json()["data"]
    assert {each["parent"] for each in listed if each["id"] == poet.model} == {client.model}
    for path, body in (("embeddings", {"input": "x"}), ("rerank", {"query": "x", "documents": ["y"]})):
        refused = poet.post(path, **body)
        assert (refused.status_code, poet.model in refused.text) == (400, True)


def seeds_are_kept(client: Client, oracle: Oracle, can: Capabilities) -> None:
    if not can.logits:
        form = {"type": "json_object"}
        for field, asked in (("seed", 5), ("response_format", form), ("logprobs", True)):
            reply = client.chat("Tell me a story", **{field: asked})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)
        return
    story = {"temperature": 1.3, "max_tokens": 12}
    first, again, other = (client.answer("Tell me a story", seed=seed, **story)[0] for seed in (5, 5, 6))
    assert first == again != other
    assert client.answer("Tell me a story", seed=5, temperature=0)[0] == oracle.ask("Tell me a story")[0]


def vectors_and_scores_are_exact(client: Client, oracle: Oracle, can: Capabilities) -> None:
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(client.post, "embeddings", input=TEXTS) for _ in range(2)]
        answers = [client.answer("Hello there")[0] for _ in range(2)]  # while others want vectors
    assert set(answers) == {oracle.ask("Hello there")[0]}
    vectors = [oracle.vector(text) for text in TEXTS]
    for future in asked:
        reply = future.result().json()
        for (vector, _), item in zip(vectors, reply["data"], strict=True):
            assert item["embedding"] == pytest.approx(vector, abs=1e-6)
        count = sum(tokens for _, tokens in vectors)
        assert reply["usage"] == {"prompt_tokens": count, "total_tokens": count}
    reply = client.post("rerank", query=QUERY, documents=DOCUMENTS)
    if not can.logits:
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_model")
        return
    scores = {result["index"]: result["relevance_score"] for result in reply.json()["results"]}
    for index, wanted in enumerate(oracle.scores(QUERY, DOCUMENTS)):
        assert scores[index] == pytest.approx(wanted, abs=1e-6)
