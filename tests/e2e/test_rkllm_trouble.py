"""What a client sees when the vendor's library misbehaves, in each of the ways its simulator knows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from npu.simulator import Profile, SimulatedModel, build
from tests.e2e.test_cancellation import until_state
from tests.oracle import Oracle
from tests.simulators import SIMULATORS
from tests.stack import LIMIT, Stack, eventually

SEA = "Tell me of the sea"
LONG = "The sea is wide, " * 400
SOUND = SimulatedModel(max_context_limit=512)
"""Small, for there are many of them."""
DIES_LOADING = {
    "init-fails": (replace(SOUND, init_fail=True), "model_unavailable", "failed to load the model"),
    "no-npu-memory": (replace(SOUND, out_of_npu_memory=True), "model_unavailable", "memory"),
    "init-crashes": (replace(SOUND, init_segfault=True), "engine_lost", "died"),
}
PACED = replace(SOUND, answers={"sea": LONG}, profile=Profile(decode_tps=10))
"""Slow enough for its first words to be with the client before it breaks, and far from its end by then."""
DIES_TALKING = {
    "error": (replace(PACED, error_after=3), "engine_failed"),
    "segfault": (replace(PACED, segfault_after=3), "engine_lost"),
    "exit": (replace(PACED, exit_after=3), "engine_lost"),
    "hang": (replace(PACED, hang_after=3), "engine_lost"),
}
ODD = {
    "null-text": replace(SOUND, null_text=True),
    "split-utf8": replace(SOUND, split_utf8=True),
    "late-tokens": replace(SOUND, last_token_late=200, slow_token=2, slow_token_ms=400),
}
SUSPECT = replace(SOUND, garbage=True, wrong_logits=True, toolkit="1.2.2")
DEAF = SimulatedModel(ignore_abort=True, answers={"sea": LONG}, profile=Profile(decode_tps=250))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One board with a sound model and all the troubled ones. A token that is not there after 2 s never comes."""
    stack = Stack({}, rkllm_library="simulator", default_model="sound", token_stall=2, lease=6)
    stack.add_simulated("sound", SOUND)
    for name, (model, *_) in DIES_LOADING.items():
        stack.add_simulated(name, model)
    for name, (model, _) in DIES_TALKING.items():
        stack.add_simulated(name, model, "[engine_options]\nself_test = 0")  # or it would be found out when loaded
    for name, model in ODD.items():
        stack.add_simulated(name, replace(model, answers={"emoji": "é→🚀😀 语"}))
    stack.add_simulated("suspect", SUSPECT)
    stack.add_simulated("strict", SUSPECT, "[engine_options]\nrefuse_suspect = 1")
    stack.add_simulated("deaf", DEAF)
    with stack:
        yield stack


@pytest.fixture
def sound(stack: Stack) -> Iterator[None]:
    """Another model never notices: the same process answers before and after."""
    wanted = Oracle(stack.folder / "models" / "sound", SOUND).ask("Hello")[0]
    assert answer(stack, "sound", "Hello") == wanted
    process = stack.child("sound").pid
    yield
    assert answer(stack, "sound", "Hello") == wanted
    assert stack.child("sound").pid == process


def chat(stack: Stack, model: str, text: str, **more: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT)


def answer(stack: Stack, model: str, text: str) -> str:
    reply = chat(stack, model, text)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def streamed(stack: Stack, model: str, text: str) -> tuple[list[str], str, bool]:
    """The pieces of an answer, the code of the error that ends it or nothing, and whether it is said to be done."""
    lines = chat(stack, model, text, stream=True).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ())]
    code = next((chunk["error"]["code"] for chunk in chunks if "error" in chunk), "")
    return [piece for piece in pieces if piece], code, "data: [DONE]" in lines


@pytest.mark.parametrize("model", DIES_LOADING)
@pytest.mark.usefixtures("sound")
def test_a_model_that_cannot_be_loaded(stack: Stack, model: str) -> None:
    """A 5xx with the reason, and its worker is there for the next who asks."""
    _, code, words = DIES_LOADING[model]
    reply = chat(stack, model, "Hello")
    assert reply.status_code >= 500
    assert reply.json()["error"]["code"] == code
    assert words in reply.json()["error"]["message"]
    eventually(lambda: stack.has_worker(model), what="another worker")


@pytest.mark.parametrize("model", ["error", "segfault", pytest.param("exit", marks=pytest.mark.full), "hang"])
@pytest.mark.usefixtures("sound")
def test_a_model_that_breaks_in_mid_answer(stack: Stack, model: str) -> None:
    """It is gone on with a few times, as if nothing had been; then it ends with an error, and without [DONE]."""
    pieces, error, done = streamed(stack, model, SEA)
    assert pieces and LONG.startswith("".join(pieces))
    assert (error, done) == (DIES_TALKING[model][1], False)
    eventually(lambda: stack.has_worker(model), what="another worker")


@pytest.mark.parametrize(
    "model",
    [pytest.param(each, marks=pytest.mark.full if each in ("late-tokens", "null-text") else []) for each in ODD],
)
def test_texts_that_are_missing_split_or_late_are_no_loss(stack: Stack, model: str) -> None:
    """Every answer is whole, streamed or not, and no piece of it ends inside a character."""
    simulated = replace(ODD[model], answers={"emoji": "é→🚀😀 语"})
    oracle = Oracle(stack.folder / "models" / model, simulated)
    for text in ("Say it in emoji", SEA):
        wanted = oracle.ask(text)[0]
        assert answer(stack, model, text) == wanted
        pieces, error, done = streamed(stack, model, text)
        assert ("".join(pieces), error, done) == (wanted, "", True)
        assert not any("\ufffd" in piece for piece in pieces)


def test_an_abort_that_nobody_hears(stack: Stack) -> None:
    """Who leaves frees the engine all the same: it says a few tokens more, and the next one is answered."""
    body = {"model": "deaf", "stream": True, "messages": [{"role": "user", "content": SEA}]}
    with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
        job = reply.headers["x-job-id"]
        next(line for line in reply.iter_lines() if re.search('"content":"[^"]', line))
    found = until_state(stack, job, "cancelled", "finished")
    assert found["state"] == "cancelled" and 0 < found["usage"]["completion_tokens"] < 1600
    assert answer(stack, "deaf", "Hello") == Oracle(stack.folder / "models" / "deaf", DEAF).ask("Hello")[0]


def test_garbage_is_told_of_and_a_strict_manifest_refuses_it(stack: Stack) -> None:
    """The client of a strict one reads why; the card of the other says it, and what its logits cannot be used for."""
    reply = chat(stack, "strict", "Hello")
    assert reply.status_code == 503
    error = reply.json()["error"]
    assert error["code"] == "model_unavailable"
    assert "refuse_suspect" in error["message"] and "Its text is suspect" in error["message"]
    assert chat(stack, "suspect", "Hello", max_tokens=4).status_code == 200
    seeded = chat(stack, "suspect", "Hello", seed=5, max_tokens=4)
    assert seeded.status_code == 400
    assert (seeded.json()["error"]["param"], "self-test" in seeded.text) == ("seed", True)
    card = eventually(lambda: card_with(stack, "suspect", "does not stop"), what="a card that tells")
    assert '"text":"suspect"' in card and '"logits":"suspect"' in card


def card_with(stack: Stack, model: str, words: str) -> str:
    card = httpx.get(f"{stack.url}/v1/models/{model}", timeout=LIMIT).text
    return card if words in card else ""


def no_library(folder: Path, kind: str) -> dict[str, str]:
    """Settings that name something else than the library they should."""
    sound, bad = build("1.2.3", SIMULATORS), folder / "librkllmrt.so"
    match kind:
        case "text":
            bad.write_text("version 1.2.3\n")
        case "truncated":
            bad.write_bytes(sound.read_bytes()[: sound.stat().st_size // 2])
        case "another machine":
            other = bytearray(sound.read_bytes())
            other[18:20] = (8).to_bytes(2, "little")  # e_machine: MIPS
            bad.write_bytes(other)
        case "another version":
            shutil.copy(sound, bad)
            return {"rkllm_library": str(bad), "rkllm_version": "1.3.0"}
    return {"rkllm_library": str(bad)}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "it is a text file"),
        ("truncated", "the file is cut off"),
        ("another machine", "it is made for MIPS"),
        ("another version", "says that it is 1.3.0. But"),
    ],
)
def test_what_is_no_library_is_told_in_a_sentence(stack: Stack, tmp_path: Path, kind: str, words: str) -> None:
    """The worker ends with the reason and no traceback, before anything of it was called."""
    name = f"on-{kind.replace(' ', '-')}"
    stack.add_simulated(name, SOUND)
    assert stack.start("worker", name, **no_library(tmp_path, kind)).wait(LIMIT) == 1
    [line] = [line for line in stack.log(f"worker {name}").splitlines() if " info " not in line]
    assert line.startswith("rockchipllama: The library ") and words in line
