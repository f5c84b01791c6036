"""Each open question about the vendor's library, answered one way and the other."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npu.rkllm.abi import Answer, Mode, State
from npu.simulator import SWITCHES, Adapter, Language, Profile, SimulatedModel, write_adapter
from tests.npu.simulator.conftest import Open
from tests.npu.simulator.runtime import Heard, Runtime, in_child

PROMPT = next([n] * 9 for n in range(256) if 6 < len(Language().expected_answer([n] * 9, 40)) < 30)
"""A prompt with an answer of a handy length."""


def switched(**switches: str) -> SimulatedModel:
    return SimulatedModel(switches=switches)


def test_every_switch_has_a_test() -> None:
    tested = {name.removeprefix("test_switch_") for name in globals() if name.startswith("test_switch_")}
    assert tested == set(SWITCHES)


@pytest.mark.parametrize("way", SWITCHES["callback_thread"])
def test_switch_callback_thread(start: Open, version: str, way: str) -> None:
    runtime = start(switched(callback_thread=way), version)
    runtime.run(PROMPT)
    assert runtime.tokens() == runtime.expect(PROMPT)
    assert ({one.thread for one in runtime.heard} == {threading.get_ident()}) == (way == "caller")


@pytest.mark.parametrize("version", ["1.1.4", "1.3.0"])
@pytest.mark.parametrize("way", SWITCHES["copies_structs"])
def test_switch_copies_structs(library: Callable[[str], Path], tmp_path: Path, version: str, way: str) -> None:
    """A binding that lets go of what it gave to init is caught, where the library still looks at it."""
    path = library(version)

    def child() -> None:
        runtime = Runtime(path, tmp_path, switched(copies_structs=way), version)
        assert runtime.run(PROMPT) == 0  # Nothing is wrong as long as it is held.
        params: Any = runtime.loaded.alive[0]
        ctypes.memset(ctypes.addressof(params), 0xDD, 8)  # The path's pointer, as freed memory looks.
        params.model_path = b"/elsewhere"
        assert runtime.run(PROMPT) == 0

    status, said = in_child(child)
    assert (status == 0) == (way == "yes"), said
    assert ("SIMULATOR VIOLATION: the structs or the path given to rkllm_init" in said) == (way == "no")


@pytest.mark.parametrize("way", SWITCHES["running_polarity"])
def test_switch_running_polarity(start: Open, version: str, way: str) -> None:
    """Since 1.3.0 the header says 1."""
    runtime = start(switched(running_polarity=way), version)
    seen: list[int] = []

    def answer(heard: Heard) -> Answer:
        seen.append(runtime.lib.rkllm_is_running(runtime.loaded.handle))
        return Answer.CONTINUE

    runtime.answer = answer
    runtime.run(PROMPT)
    running = int(way == "one" or version == "1.3.0")
    assert set(seen) == {running} and runtime.lib.rkllm_is_running(runtime.loaded.handle) == 1 - running


@pytest.mark.parametrize("way", SWITCHES["state_after_abort"])
def test_switch_state_after_abort(start: Open, version: str, way: str) -> None:
    runtime = start(switched(state_after_abort=way), version)

    def answer(heard: Heard) -> Answer:
        runtime.lib.rkllm_abort(runtime.loaded.handle)
        return Answer.CONTINUE

    runtime.answer = answer
    status = runtime.run(PROMPT)
    ended = [one.state for one in runtime.heard if one.state in (State.FINISH, State.ERROR)]
    assert ended == {"finish": [State.FINISH], "error": [State.ERROR], "none": []}[way]
    assert status == (-1 if way == "error" else 0)


@pytest.mark.parametrize("way", SWITCHES["error_status"])
def test_switch_error_status(start: Open, version: str, way: str) -> None:
    runtime = start(switched(error_status=way), version, context_length=32)
    assert runtime.run([1] * 33) == {"minus_one": -1, "zero": 0, "one": 1}[way]
    assert runtime.heard[-1].state is State.ERROR


@pytest.mark.parametrize("way", SWITCHES["return_two_before_1_3"])
def test_switch_return_two_before_1_3(start: Open, way: str) -> None:
    """Our binding never lets it through, so a callback of its own is given to the library."""
    runtime = start(switched(return_two_before_1_3=way))
    abi: Any = runtime.abi
    told: list[tuple[int, bytes | None]] = []

    def hear(result: Any, userdata: int, state: int) -> int:
        told.append((state, result[0].text))
        return 2

    callback = abi.LLMResultCallback(hear)
    handle = ctypes.c_void_p()
    assert runtime.lib.rkllm_init(ctypes.byref(handle), ctypes.byref(runtime.loaded.alive[0]), callback) == 0  # type: ignore[arg-type]
    given = abi.RKLLMInput(role=b"user")
    given.prompt_input = b"2 + 2"
    assert runtime.lib.rkllm_run(handle, given, abi.RKLLMInferParam(), None) == 0
    runtime.lib.rkllm_destroy(handle)
    texts = b"".join(text or b"" for _, text in told)
    assert texts == {"continue": b"2 + 2 is 4.", "stop": b"2", "drop": b"2"}[way]
    assert (told[-1][0] == State.FINISH) == (way != "stop")


@pytest.mark.parametrize("way", SWITCHES["history_zero_clears"])
@pytest.mark.parametrize("version", ["1.2.0", "1.3.0"])
def test_switch_history_zero_clears(start: Open, version: str, way: str) -> None:
    """A conversation that was kept: forgotten by the next run without history, or still there."""
    runtime = start(switched(history_zero_clears=way), version, max_tokens=6)
    runtime.run(PROMPT, keep_history=True)
    before = runtime.cache()
    runtime.run([7, 8])
    assert runtime.tokens() == runtime.expect([7, 8] if way == "yes" else [*before, 7, 8], 6)
    runtime.abi.clear_cache(runtime.loaded)
    runtime.run([7, 8])
    assert runtime.tokens() == runtime.expect([7, 8], 6)


@pytest.mark.parametrize("way", SWITCHES["after_pause"])
@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_switch_after_pause(start: Open, version: str, way: str) -> None:
    runtime = start(switched(after_pause=way), version)
    runtime.answer = lambda heard: Answer.PAUSE
    runtime.run(PROMPT)
    runtime.run([*PROMPT, 5])
    assert runtime.cache() == ([*PROMPT, *PROMPT, 5] if way == "append" else [*PROMPT, 5])


@pytest.mark.parametrize("way", SWITCHES["last_token_cached"])
@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_switch_last_token_cached(start: Open, version: str, way: str) -> None:
    runtime = start(switched(last_token_cached=way), version, max_tokens=5)
    runtime.run(PROMPT)
    assert runtime.abi.cache_sizes(runtime.loaded) == (len(PROMPT) + (5 if way == "yes" else 4),)


@pytest.mark.parametrize("way", SWITCHES["adapter_keeps_cache"])
def test_switch_adapter_keeps_cache(start: Open, way: str, tmp_path: Path) -> None:
    """What another adapter has read is reused, and spoils the answer; unless the cache is cleared between them."""
    runtime = start(switched(adapter_keeps_cache=way), max_tokens=12)
    runtime.abi.load_adapter(runtime.loaded, write_adapter(tmp_path / "a_lora.rkllm"), "tone")
    runtime.run(PROMPT)
    runtime.run(PROMPT, adapter="tone")
    assert (runtime.tokens() == runtime.expect(PROMPT, 12, Adapter("tone"))) == (way == "no")
    runtime.abi.clear_cache(runtime.loaded)
    runtime.run(PROMPT, adapter="tone")
    assert runtime.tokens() == runtime.expect(PROMPT, 12, Adapter("tone"))


@pytest.mark.parametrize("way", SWITCHES["eos_delivered"])
@pytest.mark.parametrize("skip", [True, False])
def test_switch_eos_delivered(start: Open, version: str, way: str, skip: bool) -> None:
    """Its text is there only where special tokens are not skipped, and figures do not count it."""
    model = SimulatedModel(switches={"eos_delivered": way}, profile=Profile(decode_tps=20), time_scale=0)
    runtime = start(model, version, skip_special_tokens=skip)
    runtime.run("2 + 2")
    told = [one.token for one in runtime.heard[:-1]]
    assert (told[-1] == runtime.language.end) == (way == "yes")
    assert runtime.text() == b"2 + 2 is 4." + (b"<|im_end|>" if way == "yes" and not skip else b"")
    assert len(told) == 9 + (way == "yes")
    if runtime.abi.CAPABILITIES.perf:
        assert (runtime.perf().generate_tokens, runtime.perf().generate_ms) == (9, 450.0)


@pytest.mark.parametrize("way", SWITCHES["null_text_in_waiting_finish"])
def test_switch_null_text_in_waiting_finish(start: Open, way: str) -> None:
    """Read without our binding, which takes NULL for empty."""
    model = SimulatedModel(switches={"null_text_in_waiting_finish": way}, answers={"one": "é"})
    runtime = start(model)
    abi: Any = runtime.abi
    told: list[tuple[int, bytes | None]] = []

    def hear(result: Any, userdata: int, state: int) -> int:
        told.append((state, result[0].text))
        return 0

    callback = abi.LLMResultCallback(hear)
    handle = ctypes.c_void_p()
    assert runtime.lib.rkllm_init(ctypes.byref(handle), ctypes.byref(runtime.loaded.alive[0]), callback) == 0  # type: ignore[arg-type]
    given = abi.RKLLMInput(role=b"user")
    given.prompt_input = b"one"
    runtime.lib.rkllm_run(handle, given, abi.RKLLMInferParam(), None)
    runtime.lib.rkllm_destroy(handle)
    nothing = None if way == "yes" else b""
    assert told == [(1, nothing), (0, "é".encode()), (0, b""), (2, nothing)]


@pytest.mark.parametrize("way", SWITCHES["logits_rows"])
@pytest.mark.parametrize("version", ["1.2.0", "1.3.0"])
def test_switch_logits_rows(start: Open, version: str, way: str) -> None:
    runtime = start(switched(logits_rows=way), version, max_tokens=1)
    runtime.run(PROMPT, mode=Mode.LOGITS)
    rows = runtime.heard[0].logits
    assert len(rows) == (len(PROMPT) if way == "all" else 1)
    assert rows[-1].index(max(rows[-1])) == runtime.language.next(PROMPT).token


@pytest.mark.parametrize("way", SWITCHES["prefill_counts_cached"])
@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_switch_prefill_counts_cached(start: Open, version: str, way: str) -> None:
    runtime = start(switched(prefill_counts_cached=way), version, max_tokens=2)
    runtime.run(PROMPT)
    runtime.run([*PROMPT, 1, 2])
    assert runtime.perf().prefill_tokens == (len(PROMPT) + 2 if way == "yes" else 2)
