"""What a simulated runtime remembers from run to run, and how it counts."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from npu.rkllm.abi import Answer, Mode, State, Text
from npu.simulator import Adapter, Language, Profile, SimulatedModel, write_adapter
from tests.npu.simulator.conftest import Open
from tests.npu.simulator.runtime import VERSIONS, Heard, Runtime, of

WITH_HISTORY = VERSIONS[1:]
WITH_FIGURES = ("1.2.3", "1.3.0")
every_history = pytest.mark.parametrize("version", WITH_HISTORY)
every_figure = pytest.mark.parametrize("version", WITH_FIGURES)
PAST_END: dict[str, Any] = {"ignore_eos": True}


def words(count: int, seed: int = 0) -> list[int]:
    """Token ids which no text would give."""
    return [(seed * 7919 + 31 * place * place) % 256 for place in range(count)]


@every_history
def test_a_prompt_that_begins_as_the_last_is_not_read_again(start: Open, version: str) -> None:
    """Its last token always is, and the answer is the same as of the whole."""
    runtime = start(version=version, max_tokens=8)
    prompt = words(50)
    runtime.run(prompt)
    longer = [*prompt, *runtime.tokens(), *words(10, 1)]
    runtime.run(longer)
    assert runtime.tokens() == runtime.expect(longer, 8)
    if version in WITH_FIGURES:
        assert (runtime.perf().prefill_tokens, runtime.perf().generate_tokens) == (11, len(runtime.tokens()))
        runtime.run(longer)
        assert runtime.perf().prefill_tokens == 1
        runtime.run([9, *longer])
        assert runtime.perf().prefill_tokens == len(longer) + 1
        assert runtime.tokens() == runtime.expect([9, *longer], 8)


def test_the_oldest_family_keeps_nothing(start: Open) -> None:
    runtime = start(version="1.1.4", max_tokens=8)
    runtime.run(words(20))
    runtime.run([*words(20), 7])
    assert runtime.tokens() == runtime.expect([*words(20), 7], 8)


@every_figure
def test_a_model_without_full_attention_reads_everything_again(
    start: Open, version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = start(SimulatedModel(full_attention=False), version, max_tokens=8)
    runtime.run(words(20))
    runtime.run([*words(20), 7])
    assert runtime.perf().prefill_tokens == 21
    assert "does not support kv cache reuse. clearing all caches" in capfd.readouterr().err
    runtime.run([5], keep_history=True)  # History it does have.
    assert runtime.perf().prefill_tokens == 1


@every_history
def test_history_appends_what_is_new(start: Open, version: str) -> None:
    """Tokens as they are; text as a further turn, after the end of the answer before."""
    runtime = start(SimulatedModel(answers={}), version, max_tokens=5)
    runtime.run(words(20), keep_history=True)
    first = runtime.cache()
    runtime.run(words(6, 2), keep_history=True)
    assert runtime.tokens() == runtime.expect([*first, *words(6, 2)], 5)
    runtime.abi.clear_cache(runtime.loaded)
    runtime.run("Hello", keep_history=True)
    first = runtime.cache()
    runtime.run("And now?", keep_history=True)
    turn = runtime.language.tokenize(f"<|im_end|>\n{of('And now?')}")
    assert runtime.tokens() == runtime.expect([*first, *turn], 5)
    runtime.run("Anew")
    assert runtime.tokens() == runtime.expect(of("Anew"), 5)


@every_history
def test_a_cleared_cache_is_empty(start: Open, version: str) -> None:
    runtime = start(version=version, max_tokens=4)
    runtime.run(words(20), keep_history=True)
    assert runtime.abi.clear_cache(runtime.loaded) == 0
    assert runtime.cache() == [] and runtime.abi.cache_sizes(runtime.loaded) in (None, (0,))
    runtime.run([3], keep_history=True)
    assert runtime.tokens() == runtime.expect([3], 4)


@every_figure
def test_the_size_of_the_cache_is_told(start: Open, version: str) -> None:
    """Without the last token, which was said and not read."""
    runtime = start(version=version, max_tokens=6)
    prompt = next(words(9, seed) for seed in range(50) if len(Language().expected_answer(words(9, seed), 6)) == 6)
    runtime.run(prompt)
    assert runtime.abi.cache_sizes(runtime.loaded) == (9 + 5,)
    assert runtime.cache() == [*prompt, *runtime.tokens()[:-1]]


@every_history
def test_a_full_context_loses_its_older_half_but_for_what_is_kept(start: Open, version: str) -> None:
    runtime = start(version=version, context_length=40, max_tokens=60, keep_tokens=10)
    for seed in range(20):
        runtime.run(words(30, seed))
        expected = runtime.expect(words(30, seed), 60, context=40, keep=10)
        assert runtime.tokens() == expected
        if len(expected) > 40:
            assert runtime.cache()[:10] == words(30, seed)[:10] and len(runtime.cache()) <= 40
            return
    pytest.fail("no answer was long enough")


def test_a_prompt_longer_than_the_context_is_an_error(
    start: Open, version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = start(version=version, context_length=32)
    assert runtime.run(words(33)) == -1
    assert [one.state for one in runtime.heard] == [State.ERROR]
    assert "the prompt has 33 tokens, which exceeds max_context_len 32" in capfd.readouterr().err
    assert runtime.run(words(32)) == 0


def test_adapters_are_chosen_by_name(start: Open, version: str, tmp_path: Path) -> None:
    """Several at once, each with its scale; a name that is not loaded ends the run."""
    runtime = start(version=version, max_tokens=12)
    path = write_adapter(tmp_path / "a_lora.rkllm")
    assert runtime.abi.load_adapter(runtime.loaded, path, "tone", 0.5) == 0
    assert runtime.abi.load_adapter(runtime.loaded, path, "verse") == 0
    assert runtime.abi.load_adapter(runtime.loaded, tmp_path / "none", "none") == -1
    for adapter in (Adapter("tone", 0.5), Adapter("verse"), None):
        if version != "1.1.4":
            runtime.abi.clear_cache(runtime.loaded)
        assert runtime.run(words(9), adapter=adapter.name if adapter else None) == 0
        assert runtime.tokens() == runtime.expect(words(9), 12, adapter)
    assert runtime.run(words(9), adapter="none") == -1
    assert runtime.heard[-1].state is State.ERROR


@every_figure
def test_a_prompt_cache_file_spares_the_prefix(start: Open, version: str, tmp_path: Path) -> None:
    """It is written at the end of each run that names it, and belongs to one model and context."""
    file, prefix = tmp_path / "cache.bin", words(40)
    runtime = start(version=version, max_tokens=6)
    runtime.run(prefix, cache_file=file)
    assert file.is_file()
    runtime.abi.clear_cache(runtime.loaded)
    assert runtime.lib.rkllm_load_prompt_cache(runtime.loaded.handle, bytes(file)) == 0
    assert runtime.lib.rkllm_load_prompt_cache(runtime.loaded.handle, bytes(file)) == -1  # One at a time.
    runtime.run([*prefix, 8, 9])
    assert runtime.perf().prefill_tokens == 2 and runtime.tokens() == runtime.expect([*prefix, 8, 9], 6)
    assert runtime.lib.rkllm_release_prompt_cache(runtime.loaded.handle) == 0
    runtime.abi.clear_cache(runtime.loaded)
    runtime.run([*prefix, 8, 9])
    assert runtime.perf().prefill_tokens == 42
    other = start(SimulatedModel(name="other"), version)
    assert other.lib.rkllm_load_prompt_cache(other.loaded.handle, bytes(file)) == -1
    file.write_bytes(file.read_bytes()[:60])
    assert runtime.lib.rkllm_load_prompt_cache(runtime.loaded.handle, bytes(file)) == -1


def test_a_prompt_cache_file_has_its_size_and_takes_its_time(start: Open, tmp_path: Path) -> None:
    """As large as a board's would be, without taking the room; and it may fail."""
    file, prefix = tmp_path / "cache.bin", words(40)
    runtime = start(SimulatedModel(cache_kb=100, cache_mb_s=50), max_tokens=6)
    runtime.run(prefix)
    begun = time.monotonic()
    runtime.run(prefix, cache_file=file)
    assert time.monotonic() - begun >= 4_096_000 / 50e6
    assert file.stat().st_size == 40 * 102_400 and file.stat().st_blocks * 512 < 1 << 20
    assert runtime.lib.rkllm_load_prompt_cache(runtime.loaded.handle, bytes(file)) == 0
    unable = start(SimulatedModel(cache_load_fail=True), max_tokens=6)
    assert unable.lib.rkllm_load_prompt_cache(unable.loaded.handle, bytes(file)) == -1
    unable = start(SimulatedModel(cache_save_fail=True), max_tokens=6)
    assert unable.run(prefix, cache_file=tmp_path / "none") == 0 and not (tmp_path / "none").exists()


def test_the_oldest_family_has_prompt_cache_files_too(start: Open, tmp_path: Path) -> None:
    runtime = start(version="1.1.4", max_tokens=6)
    runtime.run(words(20), cache_file=tmp_path / "c")
    assert runtime.lib.rkllm_load_prompt_cache(runtime.loaded.handle, bytes(tmp_path / "c")) == 0
    runtime.run([*words(20), 4])
    assert runtime.tokens() == runtime.expect([*words(20), 4], 6)


@every_history
def test_a_template_that_is_set_replaces_the_models_own(
    start: Open, version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is put around the text as it stands, forgets the cache, and knows nothing of thinking."""
    runtime = start(version=version, max_tokens=4)
    runtime.run(words(9))
    assert runtime.lib.rkllm_set_chat_template(runtime.loaded.handle, b"S:", b"Q:", b"A:") == 0
    assert runtime.cache() == []
    runtime.run(Text("the board", thinking=not runtime.abi.CAPABILITIES.thinking_flag))
    assert runtime.tokens() == runtime.expect("S:Q:the boardA:", 4)
    if runtime.abi.CAPABILITIES.thinking_flag:
        assert "enable_thinking is not supported" in capfd.readouterr().err
    if runtime.abi.CAPABILITIES.clear_cache_arguments == 4:
        runtime.abi.clear_cache(runtime.loaded, keep_system_prompt=True)
        assert runtime.cache() == runtime.language.tokenize("S:")
    assert runtime.lib.rkllm_set_chat_template(runtime.loaded.handle, b"", b"", b"") == 0
    runtime.run(of("Whole text"))
    assert runtime.tokens() == runtime.expect(of("Whole text"), 4)


def test_a_template_the_runtime_cannot_read_is_reported(start: Open, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = start(SimulatedModel(template_parses=False), max_tokens=4)
    ctypes.CDLL(None).fflush(None)
    assert "Chat template auto-parsing failed" in capfd.readouterr().err
    runtime.run("Bare text")
    assert runtime.tokens() == runtime.expect("Bare text", 4)


@every_figure
def test_tools_stand_in_the_system_prompt_and_their_results_follow(start: Open, version: str) -> None:
    tools = json.dumps([{"type": "function", "function": {"name": "time"}}])
    runtime = start(SimulatedModel(answers={}), version, max_tokens=4)
    handle = runtime.loaded.handle
    assert runtime.lib.rkllm_set_function_tools(handle, b"Be brief.", tools.encode(), b"tool_response") == 0
    runtime.run("Time?")
    system = f"<|im_start|>system\nBe brief.\n\n# Tools\n\n{tools}<|im_end|>\n"
    assert runtime.tokens() == runtime.expect(system + of("Time?"), 4)
    before = runtime.cache()
    runtime.run(Text('{"time": "12:00"}', role="tool"))
    result = of('<tool_response>\n{"time": "12:00"}\n</tool_response>')
    assert runtime.tokens() == runtime.expect([*before, *runtime.language.tokenize(f"<|im_end|>\n{result}")], 4)


@every_figure
def test_slots_advance_together_until_each_has_ended(start: Open, version: str) -> None:
    runtime = start(SimulatedModel(answers={"first": " yes", "second": " no one waits"}), version, slots=3)
    runtime.run("first", "second", words(12))
    expected = [runtime.expect(of("first")), runtime.expect(of("second")), runtime.expect(words(12))]
    assert [runtime.tokens(slot) for slot in range(3)] == expected
    assert runtime.text(0) == b" yes" and runtime.text(1) == b" no one waits"
    assert runtime.heard[-1].state is State.FINISH and len(runtime.heard[-1].results) == 3
    late = runtime.heard[len(expected[0]) + 1].results[0]  # After the token that ended the first.
    assert late.token == -1 and late.text == b""
    rows = runtime.hidden("first", "second", words(2, 1))
    assert rows[-2:] == runtime.language.hidden(words(2, 1), 64)
    assert runtime.abi.cache_sizes(runtime.loaded) == tuple(len(runtime.cache(slot)) for slot in range(3))


@every_figure
def test_logits_of_several_slots_are_refused(start: Open, version: str, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = start(version=version, slots=2)
    params = runtime.abi.RKLLMInferParam(mode=2)  # type: ignore[attr-defined]
    inputs = (runtime.abi.RKLLMInput * 2)()  # type: ignore[attr-defined]
    for one in inputs:
        one.input_type, one.prompt_input, one.role = 0, b"x", b"user"
    assert runtime.lib.rkllm_run(runtime.loaded.handle, inputs, ctypes.byref(params), None) == -1
    assert "Getting the logits is not supported for multiple batches" in capfd.readouterr().err


@every_figure
def test_a_paused_run_goes_on_from_its_cache(start: Open, version: str) -> None:
    """One token at a time; no end is told at a pause, and ranges of the cache can be cut out."""
    runtime = start(version=version, max_tokens=20)
    runtime.answer = lambda heard: Answer.PAUSE
    runtime.run(words(9))
    assert [one.state for one in runtime.heard] == [State.NORMAL] and runtime.cache() == words(9)
    runtime.run([runtime.heard[0].token, 5])
    assert runtime.cache() == [*words(9), runtime.expect(words(9), 1)[0], 5]
    clear = runtime.lib.rkllm_clear_kv_cache
    ranges = [(ctypes.c_int * 1)(first) for first in (2, 6, 99)]
    assert clear(runtime.loaded.handle, 0, ranges[0], ranges[2]) == -1
    assert clear(runtime.loaded.handle, 0, ranges[0], None) == -1
    before = runtime.cache()
    assert clear(runtime.loaded.handle, 0, ranges[0], ranges[1]) == 0
    assert runtime.cache() == before[:2] + before[6:]
    runtime.answer = lambda heard: Answer.CONTINUE
    runtime.run([8])
    assert runtime.tokens() == runtime.expect([*before[:2], *before[6:], 8], 20)
    assert clear(runtime.loaded.handle, 0, ranges[0], ranges[1]) == -1  # It is paused no more.


@every_history
def test_logits_go_on_token_by_token_until_they_are_paused(start: Open, version: str) -> None:
    runtime = start(version=version, max_tokens=5)
    runtime.run(words(9), mode=Mode.LOGITS)
    said = runtime.expect(words(9), 5)
    chosen = [one.logits[-1].index(max(one.logits[-1])) for one in runtime.heard if one.logits]
    assert chosen[:5] == [*said, runtime.language.end][:5]
    runtime.abi.clear_cache(runtime.loaded)
    if Answer.PAUSE in runtime.abi.CAPABILITIES.answers:
        runtime.answer = lambda heard: Answer.PAUSE
        runtime.run(words(9), mode=Mode.LOGITS)
        assert len(runtime.heard) == 1


@every_figure
def test_figures_are_modelled_and_exact(start: Open, version: str) -> None:
    """At 500 tokens a second read and 20 said, whatever this machine does; memory grows with rows that stay."""
    profile = Profile(prefill_tps=500, decode_tps=20, memory_mb=900)
    runtime = start(SimulatedModel(profile=profile, time_scale=0, hidden_size=1024), version, max_tokens=6)
    runtime.run(words(100))
    perf = runtime.perf()
    assert (perf.prefill_ms, perf.prefill_tokens, perf.generate_ms, perf.generate_tokens) == (200.0, 100, 300.0, 6)
    assert perf.memory_mb == 900.0
    runtime.abi.clear_cache(runtime.loaded)
    runtime.hidden(words(256))
    assert runtime.perf().memory_mb == 901.0
    runtime.abi.clear_cache(runtime.loaded)
    if version == "1.3.0":
        runtime.answer = lambda heard: Answer.RELEASE if heard.hidden else Answer.CONTINUE
    runtime.hidden(words(256))
    assert runtime.perf().memory_mb == (900.0 if version == "1.3.0" else 901.0)


def test_waiting_takes_its_time(start: Open) -> None:
    """The clock of the test cannot be early: prefill and six tokens are waited for."""
    runtime = start(SimulatedModel(profile=Profile(prefill_tps=1000, decode_tps=100)), max_tokens=6)
    began = time.monotonic()
    runtime.run(words(50))
    assert time.monotonic() - began >= 0.11


@every_figure
def test_rows_nobody_releases_slow_embeddings_down(start: Open, version: str) -> None:
    """As users saw it: until the cache is cleared."""
    runtime = start(SimulatedModel(leak=500, time_scale=0), version)
    times = []
    for seed in range(4):
        if seed == 3:
            assert runtime.abi.clear_cache(runtime.loaded) == 0
        runtime.hidden(words(40, seed + 1))
        times.append(runtime.perf().prefill_ms)
    assert times == [0.0, 20.0, 40.0, 0.0]


def abort_at(runtime: Runtime, count: int) -> None:
    """Abort from inside the callback of that token."""

    def answer(heard: Heard) -> Answer:
        if len(runtime.heard) == count:
            runtime.lib.rkllm_abort(runtime.loaded.handle)
        return Answer.CONTINUE

    runtime.answer = answer


def test_an_abort_is_heard_at_the_next_token(start: Open, version: str) -> None:
    runtime = start(version=version)
    prompt = next(words(9, seed) for seed in range(9) if len(runtime.expect(words(9, seed))) > 5)
    abort_at(runtime, 3)
    assert runtime.run(prompt) == 0
    assert runtime.tokens() == runtime.expect(prompt, 3) and runtime.heard[-1].state is State.FINISH
    runtime.answer = lambda heard: Answer.CONTINUE
    runtime.run(prompt)
    assert runtime.tokens() == runtime.expect(prompt)  # It ended one run, not the next.
    assert runtime.lib.rkllm_abort(runtime.loaded.handle) == -1


@pytest.mark.parametrize("mode", Mode)
def test_an_abort_inside_a_prefill_waits_for_its_end(start: Open, mode: Mode) -> None:
    """From another thread, while the prompt is read: nothing comes, and all of it was read."""
    deadline, inside = time.monotonic() + 60, False
    while not inside:  # A machine that is held up here may come too late.
        runtime = start(SimulatedModel(profile=Profile(prefill_tps=500)))
        run = threading.Thread(target=runtime.run, args=(words(150),), kwargs={"mode": mode})
        began = time.monotonic()
        run.start()
        while runtime.lib.rkllm_abort(runtime.loaded.handle) != 0:  # It has not begun.
            assert time.monotonic() < deadline
        inside = time.monotonic() - began < 150 / 500
        run.join()
    assert [one.state for one in runtime.heard] == [State.FINISH] and runtime.tokens() == []
    assert runtime.perf().prefill_tokens == 150 and runtime.cache() == words(150)


def test_embeddings_as_input_are_told_apart(start: Open) -> None:
    """Each row counts; rows as before are reused since 1.2.3."""
    runtime = start(version="1.2.3", max_tokens=4)
    abi: Any = runtime.abi

    def run(*rows: float) -> list[int]:
        numbers = (ctypes.c_float * (64 * len(rows)))(*[row for row in rows for _ in range(64)])
        given = abi.RKLLMInput(input_type=2, role=b"user")
        given.embed_input.embed, given.embed_input.n_tokens = numbers, len(rows)
        runtime.heard.clear()
        assert runtime.lib.rkllm_run(runtime.loaded.handle, given, abi.RKLLMInferParam(), None) == 0
        return runtime.tokens()

    first = run(0.1, 0.2)
    assert run(0.2, 0.1) != first and run(0.1, 0.2) == first
    run(0.1, 0.2, 0.3)
    assert runtime.perf().prefill_tokens == 1
