"""The whole service on the NPU's engine, from HTTP to C and back, with a simulator in the place of the vendor's library."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from npu.chat_template import ChatTemplate
from npu.manifest import read_manifest
from npu.model_files import find_template
from npu.rkllm.abi import FAMILIES
from npu.simulator import Adapter, Language, Profile, SimulatedModel, write_adapter
from npu.tokenizer_file import FileTokenizer, open_tokenizer_file
from tests.e2e.test_cancellation import begin, leave, until_state, view
from tests.stack import LIMIT, Stack, eventually

PACES = {
    "unpaced": (Profile(), 120),
    "fast": (Profile(prefill_tps=5000, decode_tps=500), 60),
    "board": (Profile(decode_tps=30), 8),
}
"""How fast a model is, and how many streams it gets here."""
LANGUAGE = Language(answers=SimulatedModel().answers)


class Oracle:
    """Knows what the simulated model of a stack answers to a chat."""

    def __init__(self, folder: Path) -> None:
        model = read_manifest(folder / "manifest.toml")
        template, tokenizer = find_template(model, None), open_tokenizer_file(folder)
        assert template is not None and tokenizer is not None
        self.template: ChatTemplate = template
        self.tokenizer: FileTokenizer = tokenizer

    def ask(self, text: str, most: int = 4000, adapter: Adapter | None = None) -> tuple[str, int, int]:
        """The answer, and how many tokens prompt and answer have."""
        prompt = self.tokenizer.encode(self.template.render([{"role": "user", "content": text}]))
        answer = LANGUAGE.expected_answer(prompt, most, adapter)
        return self.tokenizer.decode(answer).decode("utf-8", "replace"), len(prompt), len(answer)


def chat(stack: Stack, model: str, text: str, **more: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT)


@pytest.mark.parametrize("version", [abi.RUNTIMES[-1] for abi in FAMILIES])
def test_every_family_answers(version: str) -> None:
    """With exact text, usage and finish reason, alone and with an adapter; what it cannot do is refused by name; its card
    says what it is."""
    stack = Stack({}, rkllm_library=f"simulator-{version}")
    stack.add_simulated("simulated", SimulatedModel(), '[adapters]\npoet = { file = "poet.gguf", scale = 0.5 }')
    write_adapter(stack.folder / "models" / "simulated" / "poet.gguf")
    with stack:
        oracle = Oracle(stack.folder / "models" / "simulated")
        for text in ("Hello there", "What is the capital of France?", "Grüße an die See 😀"):
            reply = chat(stack, "simulated", text).json()
            answer, prompt, count = oracle.ask(text)
            choice = reply["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (answer, "stop"), text
            assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (prompt, count)
        cut = chat(stack, "simulated", "Hello there", max_tokens=3).json()
        assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 3
        assert oracle.ask("Hello there")[0].startswith(cut["choices"][0]["message"]["content"])
        seeded = [chat(stack, "simulated", "Tell me a story", temperature=1.3, seed=5, max_tokens=12) for _ in range(2)]
        if version.startswith("1.1"):
            assert seeded[0].status_code == 400
            assert seeded[0].json()["error"]["param"] == "seed"
        else:
            first, again = (reply.json()["choices"][0]["message"]["content"] for reply in seeded)
            assert first == again != oracle.ask("Tell me a story", 12)[0]
        poet = Adapter("poet", 0.5)
        for model, adapter in (("simulated:poet", poet), ("simulated", None), ("SIMULATED:POET", poet)):
            got = chat(stack, model, "Hello there")
            reply = got.json()
            assert (reply["model"], view(stack, got.headers["x-job-id"])["model"]) == (model, model.lower())
            assert reply["choices"][0]["message"]["content"] == oracle.ask("Hello there", adapter=adapter)[0]
        listed = httpx.get(f"{stack.url}/v1/models", timeout=LIMIT).json()["data"]
        assert [(each["id"], each["parent"]) for each in listed] == [
            ("simulated", None),
            ("simulated:poet", "simulated"),
        ]
        for path, more in (("embeddings", {"input": "x"}), ("rerank", {"query": "x", "documents": ["y"]})):
            refused = httpx.post(f"{stack.url}/v1/{path}", json={"model": "simulated:poet", **more}, timeout=LIMIT)
            assert (refused.status_code, "simulated:poet" in refused.text) == (400, True)
        card = httpx.get(f"{stack.url}/v1/models/simulated", timeout=LIMIT).json()
        assert version in json.dumps(card)


@pytest.fixture(scope="module")
def paced() -> Iterator[Stack]:
    """The same model at three speeds."""
    stack = Stack({}, rkllm_library="simulator", default_model="unpaced", queue_limit=64)
    for name, (profile, _) in PACES.items():
        stack.add_simulated(name, SimulatedModel(profile=profile))
    stack.add_simulated("thinking", SimulatedModel(thinking=True))
    with stack:
        yield stack


@pytest.mark.timeout(600)
@pytest.mark.parametrize("model", PACES)
def test_streams_are_whole_and_their_own(paced: Stack, model: str) -> None:
    """Many clients at once, of whom some leave: whoever stays gets the very answer to the very question."""
    oracle = Oracle(paced.folder / "models" / model)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    plans = [(number, chance.random() < 0.25) for number in range(PACES[model][1])]
    faults: list[str] = []

    def one(plan: tuple[int, bool]) -> None:
        number, leaves = plan
        text = f"Question {number}: " + "word " * (number % 40)
        wanted, _, count = oracle.ask(text)
        got, usage = "", None
        body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        body["messages"] = [{"role": "user", "content": text}]
        with httpx.stream("POST", f"{paced.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    usage = chunk.get("usage") or usage
                    got += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                    if leaves and got:
                        return
        if got != wanted or usage is None or usage["completion_tokens"] != count:
            faults.append(f"{number}: {got!r} instead of {wanted!r}, {usage}")

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, plans))
    assert faults == []
    assert paced.log("board").count(f"loading {model}") == 1


@pytest.mark.parametrize("model", ["fast", "board"])
def test_a_client_that_leaves_stops_the_engine(paced: Stack, model: str) -> None:
    """In the middle of an answer; the next one is its own."""
    held, job = begin(paced, model, "Tell me of the sea " * 3, stream=True)
    eventually(lambda: view(paced, job)["state"] != "queued", what="a start")
    leave(held)
    until_state(paced, job, "cancelled", "finished")
    oracle = Oracle(paced.folder / "models" / model)
    assert chat(paced, model, "And now?").json()["choices"][0]["message"]["content"] == oracle.ask("And now?")[0]


def test_thinking_is_switched_by_the_request(paced: Stack) -> None:
    """On is the model's own way; off, in any of a client's words, is the empty thought that the template writes for it."""
    oracle = Oracle(paced.folder / "models" / "thinking")
    language = SimulatedModel(thinking=True).language()
    off = [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}, {"think": False}]
    for more in ({}, {"reasoning_effort": "high"}, *off):
        prompt = oracle.template.render([{"role": "user", "content": "Hello"}], enable_thinking=more not in off)
        answer = oracle.tokenizer.decode(language.expected_answer(oracle.tokenizer.encode(prompt), 40)).decode()
        assert answer.startswith("<think>") == (more not in off)
        reply = chat(paced, "thinking", "Hello", max_tokens=40, **more).json()
        assert reply["choices"][0]["message"]["content"] == answer, more


def test_a_prefill_nobody_can_abort_is_left_within_a_slice() -> None:
    """8,000 tokens at 800 a second are 10 s of prefill; who leaves frees the engine after one slice."""
    stack = Stack({}, rkllm_library="simulator")
    slow = Profile(prefill_tps=800, decode_tps=200)
    stack.add_simulated("slow", SimulatedModel(profile=slow, max_context_limit=16384))
    with stack:
        assert chat(stack, "slow", "Hello", max_tokens=2).status_code == 200
        held, job = begin(stack, "slow", "word " * 8000, stream=True)
        eventually(lambda: view(stack, job)["phase"] == "prefill", what="its prefill")
        eventually(lambda: (view(stack, job)["prompt_tokens_done"] or 0) > 0, what="progress")
        leave(held)
        found = until_state(stack, job, "cancelled")
        assert found["usage"]["completion_tokens"] == 0
        assert found["timings"]["prefill_ms"] < 9000  # all of it takes 10,000, by the simulator's own clock
        assert chat(stack, "slow", "Hello", max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (SimulatedModel(segfault_after=3), "engine_lost"),
        (SimulatedModel(exit_after=3), "engine_lost"),
        (SimulatedModel(error_after=3), "engine_failed"),
        (SimulatedModel(init_fail=True), "model_unavailable"),
        (SimulatedModel(init_segfault=True), "engine_lost"),
        (SimulatedModel(out_of_npu_memory=True), "model_unavailable"),
    ],
    ids=["segfault", "exit", "error", "init fails", "init crashes", "out of memory"],
)
def test_trouble_stays_with_its_own_model(trouble: SimulatedModel, code: str) -> None:
    """The client is told clearly, the worker comes back, and another model never notices."""
    stack = Stack({}, rkllm_library="simulator", default_model="sound")
    stack.add_simulated("sound", SimulatedModel())
    stack.add_simulated("broken", trouble)
    with stack:
        oracle = Oracle(stack.folder / "models" / "sound")
        assert chat(stack, "sound", "Hello").status_code == 200
        sound = stack.child("sound").pid
        reply = chat(stack, "broken", "Tell me of the sea")
        assert reply.status_code >= 500
        assert reply.json()["error"]["code"] == code
        assert chat(stack, "sound", "Hello").json()["choices"][0]["message"]["content"] == oracle.ask("Hello")[0]
        assert stack.child("sound").pid == sound
        eventually(lambda: stack.has_worker("broken"), what="another worker")


def test_a_suspect_model_is_told_of_and_a_strict_one_is_not_served() -> None:
    """The client of a strict one reads why; the card of the other says it, and what its logits cannot be used for."""
    stack = Stack({}, rkllm_library="simulator", default_model="open")
    bad = SimulatedModel(garbage=True, wrong_logits=True, toolkit="1.2.2")
    stack.add_simulated("open", bad)
    stack.add_simulated("strict", bad, "[engine_options]\nrefuse_suspect = 1")
    with stack:
        reply = chat(stack, "strict", "Hello")
        assert reply.status_code == 503
        error = reply.json()["error"]
        assert error["code"] == "model_unavailable"
        assert "refuse_suspect" in error["message"] and "Its text is suspect" in error["message"]
        assert chat(stack, "open", "Hello", max_tokens=4).status_code == 200
        seeded = chat(stack, "open", "Hello", seed=5, max_tokens=4)
        assert seeded.status_code == 400
        assert (seeded.json()["error"]["param"], "self-test" in seeded.text) == ("seed", True)
        card = eventually(lambda: _card_with(stack, "open", "suspect"), what="a card that tells")
        assert "does not stop" in card
        told = json.loads(card)["meta"]
        assert (told["self_test"]["text"], told["self_test"]["logits"]) == ("suspect", "suspect")
        assert (told["last_load"]["toolkit"], told["last_load"]["runtime"]) == ("1.2.2", "1.3.0")


def _card_with(stack: Stack, model: str, word: str) -> str:
    card = httpx.get(f"{stack.url}/v1/models/{model}", timeout=LIMIT).text
    return card if word in card else ""
