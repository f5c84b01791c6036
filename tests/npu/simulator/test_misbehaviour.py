"""Each way a simulated runtime misbehaves on demand, and what its caller sees of it."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npu.rkllm.abi import Answer, State
from npu.simulator import Profile, SimulatedModel
from tests.npu.simulator.conftest import Open
from tests.npu.simulator.runtime import Heard, Runtime, in_child

PROMPT = [84, 101, 108, 108]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (SimulatedModel(init_fail=True), "failed to load the model"),
        (SimulatedModel(out_of_npu_memory=True), "failed to malloc npu memory"),
    ],
    ids=["fail", "memory"],
)
def test_a_load_that_fails(
    start: Open, version: str, capfd: pytest.CaptureFixture[str], model: SimulatedModel, words: str
) -> None:
    runtime = start(model, version)
    assert (runtime.status, runtime.loaded.handle.value) == (-1, None)
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    ("model", "status"),
    [
        (SimulatedModel(init_segfault=True), -signal.SIGSEGV),
        (SimulatedModel(segfault_after=2), -signal.SIGSEGV),
        (SimulatedModel(exit_after=2), 70),
    ],
    ids=["load", "segfault", "exit"],
)
def test_a_crash(library: Callable[[str], Path], tmp_path: Path, model: SimulatedModel, status: int) -> None:
    """After as many tokens as was said."""
    path = library("1.3.0")

    def child() -> None:
        runtime = Runtime(path, tmp_path, model, "1.3.0")

        def answer(heard: Heard) -> Answer:
            os.write(1, b"token\n")
            return Answer.CONTINUE

        runtime.answer = answer
        runtime.run(PROMPT)

    found, said = in_child(child)
    assert found == status
    assert said.count("token\n") == (0 if model.init_segfault else 2)


def test_an_error_in_the_middle(start: Open, version: str, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = start(SimulatedModel(error_after=3), version)
    assert runtime.run(PROMPT) == -1
    assert [one.state is State.ERROR for one in runtime.heard] == [False] * 3 + [True]
    assert "matmul(w8a8) run failed" in capfd.readouterr().err
    assert runtime.run(PROMPT) == -1  # The handle lives.


def test_a_hang_hears_no_abort(library: Callable[[str], Path], tmp_path: Path) -> None:
    """Only the end of its process ends it."""
    path = library("1.2.3")

    def child() -> None:
        runtime = Runtime(path, tmp_path, SimulatedModel(hang_after=1))

        def answer(heard: Heard) -> Answer:
            runtime.lib.rkllm_abort(runtime.loaded.handle)
            return Answer.CONTINUE

        runtime.answer = answer
        run = threading.Thread(target=runtime.run, args=(PROMPT,), daemon=True)
        run.start()
        run.join(0.3)
        assert run.is_alive() and len(runtime.heard) == 1

    assert in_child(child)[0] == 0


def test_an_abort_nobody_hears(start: Open, version: str) -> None:
    runtime = start(SimulatedModel(ignore_abort=True), version)

    def answer(heard: Heard) -> Answer:
        assert runtime.lib.rkllm_abort(runtime.loaded.handle) == 0
        return Answer.CONTINUE

    runtime.answer = answer
    runtime.run(PROMPT)
    assert runtime.tokens() == runtime.expect(PROMPT)


def test_an_abort_that_is_heard_late(start: Open) -> None:
    """More tokens come until its time is over."""
    paced = SimulatedModel(abort_latency=40, profile=Profile(decode_tps=100))
    runtime, later = start(paced, max_tokens=500), start(replace(paced, abort_latency=10**6), max_tokens=3)
    prompt = next(p for p in range(200) if len(runtime.expect([p], 500)) > 60)
    for one in (runtime, later):

        def answer(heard: Heard, one: Runtime = one) -> Answer:
            one.lib.rkllm_abort(one.loaded.handle)
            return Answer.CONTINUE

        one.answer = answer
        began = time.monotonic()
        one.run([prompt])
        if one is runtime:
            assert time.monotonic() - began >= 0.04
            assert 1 <= len(runtime.tokens()) < len(runtime.expect([prompt], 500))
    assert len(later.tokens()) == 3  # its time is not over yet


def test_texts_that_are_null(start: Open, version: str) -> None:
    runtime = start(SimulatedModel(null_text=True), version)
    runtime.run(PROMPT)
    assert runtime.text() == b"" and runtime.tokens() == runtime.expect(PROMPT)


def test_characters_in_pieces(start: Open, version: str) -> None:
    runtime = start(SimulatedModel(split_utf8=True, answers={"all": "é→🚀"}), version)
    runtime.run("Say all")
    texts = [one.results[0].text for one in runtime.heard]
    assert texts[:9] == [bytes([byte]) for byte in "é→🚀".encode()]
    states = [one.state for one in runtime.heard[:9]]
    assert [*map(int, states)] == [1, 0, 1, 1, 0, 1, 1, 1, 0]


def ticks(runtime: Runtime) -> list[float]:
    """Seconds from the start of a run to each of its callbacks."""
    began, times = time.monotonic(), []

    def answer(heard: Heard) -> Answer:
        times.append(time.monotonic() - began)
        return Answer.CONTINUE

    runtime.answer = answer
    runtime.run("2 + 2")
    return times


def test_a_slow_token(start: Open) -> None:
    assert ticks(start(SimulatedModel(slow_token=4, slow_token_ms=60)))[4] >= 0.06


def test_a_last_token_that_is_late(start: Open, version: str) -> None:
    """At the end of the answer, and at the limit."""
    runtime = start(SimulatedModel(last_token_late=60), version)
    said = ticks(runtime)
    assert len(runtime.tokens()) == 9 and said[8] >= 0.06
    assert ticks(start(SimulatedModel(last_token_late=60), version, max_tokens=3))[2] >= 0.06


def test_garbage(start: Open, version: str) -> None:
    """Letters that have nothing to do with the question, up to the limit."""
    runtime = start(SimulatedModel(garbage=True), version)
    runtime.run("What is the capital of France?")
    assert len(runtime.text()) == 64 and b" " not in runtime.text()


def log_of(
    library: Callable[[str], Path], folder: Path, version: str, level: str = "", model: SimulatedModel | None = None
) -> str:
    """What one run prints, by a process whose level of logging was set before the library was loaded."""
    copy = folder / f"level{level}.so"  # A library that is loaded already would not look again.
    copy.write_bytes(library(version).read_bytes())

    def child() -> None:
        if level:
            os.environ["RKLLM_LOG_LEVEL"] = level
        runtime = Runtime(copy, folder, model, version, max_tokens=3)
        runtime.run([1, 2, 3])
        runtime.run([1, 2, 3, 4])

    status, said = in_child(child)
    assert status == 0, said
    return said


def test_what_is_printed_at_init(library: Callable[[str], Path], tmp_path: Path, version: str) -> None:
    said = log_of(
        library, tmp_path, version, model=SimulatedModel(toolkit="1.1.4", max_context_limit=2048, dtype="W8A8_G128")
    )
    assert f"I rkllm: rkllm-runtime version: {version}, rknpu driver version: 0.9.8, platform: RK3588\n" in said
    line = "I rkllm: rkllm-toolkit version: 1.1.4, max_context_limit: 2048, npu_core_num: 3, target_platform: RK3588"
    assert (line in said) == (version != "1.1.4")
    assert (f"{line}, model_dtype: W8A8_G128\n" in said) == (version in ("1.2.3", "1.3.0"))
    assert "cache" not in said


def test_a_driver_that_is_old_or_unknown(library: Callable[[str], Path], tmp_path: Path) -> None:
    assert "Your rknpu driver version is too low, please upgrade to 0.9.8" in log_of(
        library, tmp_path, "1.3.0", model=SimulatedModel(driver="0.9.6")
    )
    said = log_of(library, tmp_path, "1.3.0", model=SimulatedModel(driver=""))
    assert "rkllm-runtime version: 1.3.0, platform: RK3588\n" in said


def test_the_level_of_logging(library: Callable[[str], Path], tmp_path: Path) -> None:
    """1 tells figures, 2 tokens and caches."""
    one, two = (log_of(library, tmp_path, "1.2.3", level) for level in "12")
    assert "prefill 3 tokens in 0.00 ms, generate 3 tokens" in one and "input tokens" not in one
    assert "I rkllm: input tokens: 1 2 3 4\n" in two
    assert "current kv cache size: 0, keep history status: 0" in two
    assert "current kv cache size: 5" in two and "EOS token: " in two


def test_load_takes_its_time(start: Open) -> None:
    began = time.monotonic()
    start(SimulatedModel(profile=Profile(load_ms=50)))
    assert time.monotonic() - began >= 0.05


def test_a_run_that_is_not_simulated(start: Open, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = start()
    abi: Any = runtime.abi
    assert runtime.lib.rkllm_run_async(runtime.loaded.handle, abi.RKLLMInput(), abi.RKLLMInferParam(), None) == -1
    assert runtime.lib.rkllm_set_cross_attn_params(runtime.loaded.handle, abi.RKLLMCrossAttnParam()) == -1
    said = capfd.readouterr().err
    assert "rkllm_run_async is not simulated" in said and "no cross attention" in said
    ctypes.CDLL(None).fflush(None)
