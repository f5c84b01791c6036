"""The whole service on the NPU's engine, from HTTP to C and back, with a simulator in the place of the vendor's library."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from npu.simulator import Profile, SimulatedModel
from tests.e2e.test_cancellation import begin, leave, until_state, view
from tests.fakes.standing import Standing
from tests.oracle import Oracle
from tests.stack import LIMIT, Stack, eventually

PACES = {
    "unpaced": (Profile(), 120),
    "fast": (Profile(prefill_tps=5000, decode_tps=500), 60),
    "board": (Profile(decode_tps=30, logits_ms=3), 8),
}
"""How fast a model is, and how many streams it gets here."""


def chat(stack: Stack, model: str, text: str, **more: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT)


def _done_at_its_cancellation(stack: Stack, job: str) -> int | None:
    """The tokens of its prompt that were told to be done when a job was to end; None until then."""
    wanted, done = stack.redis.hmget(f"rl:{{{job}}}", "cancel", "done")
    return int(done) if wanted else None


@pytest.fixture(scope="module")
def paced(standing: Standing) -> Iterator[Stack]:
    """The same model at three speeds, and one that takes 10 s to read 8,000 tokens."""
    stack = Stack({}, rkllm_library="simulator", default_model="unpaced", queue_limit=64)
    for name, (profile, _) in PACES.items():
        stack.add_simulated(name, SimulatedModel(profile=profile))
    stack.add_simulated("thinking", SimulatedModel(thinking=True))
    slow = Profile(prefill_tps=800, decode_tps=200)
    stack.add_simulated("slow", SimulatedModel(profile=slow, max_context_limit=16384))
    stack.add_simulated("hidden", SimulatedModel(thinking=True))
    (stack.folder / "models" / "hidden" / "tokenizer.json").unlink()
    stack.preload(standing.environment)
    with stack:
        yield stack


@pytest.mark.parametrize("model", PACES)
def test_streams_are_whole_and_their_own(paced: Stack, model: str) -> None:
    """Many clients at once, of whom some leave: whoever stays gets the very answer to the very question."""
    oracle = Oracle(paced.folder / "models" / model, SimulatedModel())
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
    oracle = Oracle(paced.folder / "models" / model, SimulatedModel())
    assert chat(paced, model, "And now?").json()["choices"][0]["message"]["content"] == oracle.ask("And now?")[0]


def loaded_child(stack: Stack, model: str) -> psutil.Process:
    """The process that holds the engine, known before an answer begins: to look for it takes a moment."""
    assert chat(stack, model, "Hello", max_tokens=1).status_code == 200
    return stack.child(model)


# A token that is drawn from logits takes no more than those do, so there are to be many of them.
DRAWN = {"seed": 7, "temperature": 1.1, "ignore_eos": True, "max_tokens": 400}


@pytest.mark.parametrize("sampling", [{"max_tokens": 40}, DRAWN], ids=["greedy", "seed"])
def test_an_answer_goes_on_after_its_engine_died(paced: Stack, standing: Standing, sampling: dict[str, float]) -> None:
    """In the very words it would have had: the runtime's own choice is greedy, and what we draw depends on the place alone."""
    asked = {"messages": [{"role": "user", "content": "Tell me of the sea"}], **sampling}
    before = httpx.post(f"{paced.url}/v1/chat/completions", json=asked | {"model": "unpaced"}, timeout=LIMIT).json()
    text, child = "", loaded_child(paced, "board")
    with (
        standing.at(10) as stand,
        httpx.stream(
            "POST", f"{paced.url}/v1/chat/completions", json=asked | {"model": "board", "stream": True}, timeout=LIMIT
        ) as reply,
    ):
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk
                fresh = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if fresh and not text:
                    child.kill()
                    stand(1000)
                text += fresh
    assert text == before["choices"][0]["message"]["content"]
    assert view(paced, reply.headers["x-job-id"])["attempts"] == 2


def test_an_answer_in_a_format_goes_on_after_its_engine_died(paced: Stack, standing: Standing) -> None:
    """In the middle of it, drawn as it would have been."""
    schema = {"type": "array", "items": {"enum": ["sea", "land", 1]}, "minItems": 60, "maxItems": 70}
    asked = {"messages": [{"role": "user", "content": "Tell me of the sea"}], "seed": 7, "temperature": 1.1}
    asked |= {"max_tokens": 600, "guided_json": schema}
    before = httpx.post(f"{paced.url}/v1/chat/completions", json=asked | {"model": "unpaced"}, timeout=LIMIT).json()
    text, child = "", loaded_child(paced, "board")
    with (
        standing.at(10) as stand,
        httpx.stream(
            "POST", f"{paced.url}/v1/chat/completions", json=asked | {"model": "board", "stream": True}, timeout=LIMIT
        ) as reply,
    ):
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk
                fresh = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if fresh and not text:
                    child.kill()
                    stand(1000)
                text += fresh
    assert text == before["choices"][0]["message"]["content"]
    assert set(json.loads(text)) <= {"sea", "land", 1}
    assert view(paced, reply.headers["x-job-id"])["attempts"] == 2


def test_thinking_is_switched_by_the_request(paced: Stack) -> None:
    """On is the model's own way; off, in any of a client's words, is the empty thought that the template writes for it."""
    oracle = Oracle(paced.folder / "models" / "thinking", SimulatedModel(thinking=True))
    off = [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}, {"think": False}]
    for more in ({}, {"reasoning_effort": "high"}, *off):
        answer, _, _ = oracle.ask("Hello", most=40, enable_thinking=more not in off)
        assert answer.startswith("<think>") == (more not in off)
        message = chat(paced, "thinking", "Hello", max_tokens=40, **more).json()["choices"][0]["message"]
        thought, _, said = answer.removeprefix("<think>").rpartition("</think>")
        assert message["content"] == (said.lstrip() if thought else said), more
        assert message.get("reasoning_content", "").strip() == thought.strip(), more


def test_a_model_without_a_tokenizer_answers_one_message(paced: Stack) -> None:
    """With its text, finish reason and usage, streamed or not; whatever it cannot do is refused with what would help."""
    oracle = Oracle(paced.folder / "models" / "thinking", SimulatedModel(thinking=True))
    text, prompt, count = oracle.ask("Grüße", enable_thinking=False)
    reply = chat(paced, "hidden", "Grüße", reasoning_effort="none").json()
    choice, usage = reply["choices"][0], reply["usage"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, count)
    cut = chat(paced, "hidden", "Grüße", think=False, max_tokens=3).json()
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 3)
    word = text.split()[3]
    stopped = chat(paced, "hidden", "Grüße", think=False, stop=[word]).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == (text[: text.index(word)], "stop")
    body = {"model": "hidden", "stream": True, "think": False, "messages": [{"role": "user", "content": "Grüße"}]}
    streamed = httpx.post(f"{paced.url}/v1/chat/completions", json=body, timeout=LIMIT).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks) == text
    system = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
    kwargs = {**body, "stream": False, "chat_template_kwargs": {"tone": "calm"}}
    for path, more in (
        ("chat/completions", system),
        ("chat/completions", kwargs),
        ("chat/completions", {**body, "stream": False, "seed": 5}),
        ("completions", {"prompt": "Once"}),
        ("completions", {"prompt": [1, 2]}),
    ):
        refused = httpx.post(f"{paced.url}/v1/{path}", json={"model": "hidden", **more}, timeout=LIMIT)
        assert (refused.status_code, "tokenizer.json" in refused.text) == (400, True), more
    card = httpx.get(f"{paced.url}/v1/models/hidden", timeout=LIMIT).json()
    assert card["capabilities"] == ["chat", "thinking"]


def test_a_prefill_nobody_can_abort_is_left_within_a_slice(paced: Stack) -> None:
    """8,000 tokens at 800 a second are 10 s of prefill; who leaves frees the engine after one slice."""
    assert chat(paced, "slow", "Hello", max_tokens=2).status_code == 200
    held, job = begin(paced, "slow", "word " * 8000, stream=True)
    eventually(lambda: view(paced, job)["phase"] == "prefill", what="its prefill")
    eventually(lambda: (view(paced, job)["prompt_tokens_done"] or 0) > 0, what="progress")
    leave(held)
    done = eventually(lambda: _done_at_its_cancellation(paced, job), what="its cancellation")
    found = until_state(paced, job, "cancelled")
    assert found["usage"]["completion_tokens"] == 0
    # The slice it was in, one before that may not have been told yet (progress is, once a second), and two for a slow machine.
    assert found["timings"]["prefill_ms"] < done / 0.8 + 4 * 1500
    assert chat(paced, "slow", "Hello", max_tokens=2).status_code == 200
