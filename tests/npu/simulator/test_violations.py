"""A binding that breaks the rules of the API is told so, or dies of it; nothing goes wrong in silence."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npu.rkllm.abi import Answer, Mode, NativeSampling, Run, State, Tokens, family_of
from npu.simulator import Profile, SimulatedModel, write_adapter
from tests.npu.simulator.conftest import Open
from tests.npu.simulator.runtime import Heard, Runtime, in_child

Breach = Callable[[Runtime], object]


def from_callback(call: Callable[[Runtime], object]) -> Breach:
    def breach(runtime: Runtime) -> None:
        def answer(heard: Heard) -> Answer:
            call(runtime)
            return Answer.CONTINUE

        runtime.answer = answer
        runtime.run([1, 2, 3])

    return breach


def beside_a_run(call: Callable[[Runtime], object]) -> Breach:
    def breach(runtime: Runtime) -> None:
        def answer(heard: Heard) -> Answer:
            thread = threading.Thread(target=call, args=(runtime,))
            thread.start()
            thread.join()
            return Answer.CONTINUE

        runtime.answer = answer
        runtime.run([1, 2, 3])

    return breach


def use_after_destroy(runtime: Runtime) -> None:
    runtime.close()
    runtime.lib.rkllm_is_running(runtime.loaded.handle)


def change_the_input(runtime: Runtime) -> None:
    abi: Any = runtime.abi
    ids = (ctypes.c_int32 * 3)(1, 2, 3)
    given, params = abi.RKLLMInput(input_type=1, role=b"user"), abi.RKLLMInferParam()
    given.token_input.input_ids, given.token_input.n_tokens = ids, 3

    def answer(heard: Heard) -> Answer:
        ids[1] = 9
        return Answer.CONTINUE

    runtime.answer = answer
    runtime.lib.rkllm_run(runtime.loaded.handle, given, params, None)


def answer_nonsense(runtime: Runtime) -> None:
    abi: Any = runtime.abi
    callback = abi.LLMResultCallback(lambda result, userdata, state: 12345)
    handle = ctypes.c_void_p()
    params = runtime.loaded.alive[0]
    assert runtime.lib.rkllm_init(ctypes.byref(handle), ctypes.byref(params), callback) == 0  # type: ignore[arg-type]
    runtime.loaded.handle.value = handle.value
    runtime.run([1])


BREACHES: dict[str, tuple[Breach, str]] = {
    "run in a callback": (from_callback(lambda it: it.run([4])), "rkllm_run was called from inside a callback"),
    "clear in a callback": (
        from_callback(lambda it: it.abi.clear_cache(it.loaded)),
        "rkllm_clear_kv_cache was called from inside a callback",
    ),
    "size in a callback": (
        from_callback(lambda it: it.abi.cache_sizes(it.loaded)),
        "rkllm_get_kv_cache_size was called from inside a callback",
    ),
    "destroy in a callback": (from_callback(Runtime.close), "rkllm_destroy was called from inside a callback"),
    "two runs at once": (
        beside_a_run(lambda it: it.abi.infer(it.loaded, Run(inputs=[Tokens([4])]))),
        "rkllm_run was called while the handle runs: one run at a time",
    ),
    "destroy during a run": (beside_a_run(Runtime.close), "rkllm_destroy was called while the handle runs"),
    "clear during a run": (
        beside_a_run(lambda it: it.abi.clear_cache(it.loaded)),
        "rkllm_clear_kv_cache was called while the handle runs",
    ),
    "use after destroy": (use_after_destroy, "rkllm_is_running was given a handle that is destroyed"),
    "no handle": (lambda it: it.lib.rkllm_abort(None), "rkllm_abort was given a handle that rkllm_init never made"),
    "changed input": (
        change_the_input,
        "the input or the parameters of rkllm_run were changed or freed during the run",
    ),
    "no input": (
        lambda it: it.lib.rkllm_run(it.loaded.handle, None, None, None),
        "rkllm_run was given no input or no parameters",
    ),
    "a stray answer": (answer_nonsense, "a callback returned 12345"),
    "too many logits": (
        lambda it: it.run(list(range(20)), mode=Mode.LOGITS),
        "20 rows of 151936 floats are wanted, and the simulator allows 8 MB per callback",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_ends_the_process(library: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    breach, words = BREACHES[name]

    def child() -> None:
        runtime = Runtime(library("1.2.3"), tmp_path, SimulatedModel(vocab_size=151_936))
        breach(runtime)

    library("1.2.3")
    status, said = in_child(child)
    assert f"SIMULATOR VIOLATION: {words}" in said and status == -signal.SIGABRT


def test_what_is_allowed_in_a_callback_is_allowed(start: Open, version: str) -> None:
    runtime = start(version=version)
    seen: list[int] = []

    def answer(heard: Heard) -> Answer:
        seen.append(runtime.lib.rkllm_is_running(runtime.loaded.handle))
        runtime.lib.rkllm_abort(runtime.loaded.handle)
        return Answer.CONTINUE

    runtime.answer = answer
    runtime.run([1, 2])
    assert set(seen) == {1} and runtime.lib.rkllm_is_running(runtime.loaded.handle) == 0


def refused(start: Open, capfd: pytest.CaptureFixture[str], version: str, change: Callable[[Any], None]) -> str:
    """What init says to the library's defaults once `change` is made to them; nothing when it takes them."""
    runtime = start(version=version)
    abi: Any = runtime.abi
    params, handle = abi.default_params(runtime.lib), ctypes.c_void_p(5)
    params.model_path = bytes(runtime.settings.model)
    change(params)
    callback = abi.result_callback(lambda state, results, number: Answer.CONTINUE, 1)
    if version == "1.3.0":
        callback = ctypes.byref(abi.RKLLMCallback(result_callback=callback))
    capfd.readouterr()
    status = runtime.lib.rkllm_init(ctypes.byref(handle), ctypes.byref(params), callback)
    ctypes.CDLL(None).fflush(None)
    said = capfd.readouterr().err
    if status == 0:
        runtime.lib.rkllm_destroy(handle)
    assert (status, handle.value is None) == ((-1, True) if said else (0, False))
    return said


BAD_PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "a float read as top_k": ({"top_k": 0x3F666666}, "top_k is 1.06368e+09"),
    "top_p above 1": ({"top_p": 1.5}, "top_p is 1.5"),
    "an integer read as top_p": ({"top_p": 1.4e-45}, "top_p is 1.4013e-45"),
    "no number": ({"temperature": float("nan")}, "temperature is nan"),
    "a negative temperature": ({"temperature": -0.5}, "temperature is -0.5"),
    "no repeat penalty": ({"repeat_penalty": 0.0}, "repeat_penalty is 0"),
    "a large presence penalty": ({"presence_penalty": 2.5}, "presence_penalty is 2.5"),
    "mirostat 3": ({"mirostat": 3}, "mirostat is 3"),
    "no context": ({"max_context_len": 0}, "max_context_len is 0"),
    "a context beyond the model's": (
        {"max_context_len": 16384},
        "max_context[16384] must be less than the model's max_context_limit[4096]",
    ),
    "a negative limit": ({"max_new_tokens": -2}, "max_new_tokens is -2"),
    "a domain the driver does not have": ({"extend_param.base_domain_id": 16}, "base_domain_id is 16"),
    "no slot": ({"extend_param.n_batch": 0}, "The n_batch must be between 1 and 100, but got 0"),
    "too many slots": ({"extend_param.n_batch": 101}, "The n_batch must be between 1 and 100, but got 101"),
    "too few cores": (
        {"extend_param.enabled_cpus_num": 2, "extend_param.enabled_cpus_mask": 3},
        "enabled_cpus_num[2] must not be less than npu_core_num[3]",
    ),
    "another mask": (
        {"extend_param.enabled_cpus_mask": 7},
        "enabled_cpus_mask[7] does not have enabled_cpus_num[4] cores",
    ),
    "a flag that is none": ({"extend_param.embed_flash": 5}, "embed_flash is 5"),
    "rubbish in what is reserved": ({"extend_param.reserved": 7}, "reserved is 7"),
    "a keep beyond the context": ({"n_keep": 99999}, "n_keep is 99999"),
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_parameters_no_right_binding_would_pass_are_refused(
    start: Open, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """With a line that names the field and the value."""
    fields, words = BAD_PARAMS[name]

    def change(params: Any) -> None:
        for path, value in fields.items():
            part, _, field = path.rpartition(".")
            target = getattr(params, part) if part else params
            if field == "reserved":
                target.reserved[0] = value
            else:
                setattr(target, field, value)

    assert f"E rkllm: {words}" in refused(start, capfd, "1.3.0", change)


def test_the_defaults_are_taken(start: Open, capfd: pytest.CaptureFixture[str], version: str) -> None:
    assert refused(start, capfd, version, lambda params: None) == ""


def test_a_param_of_another_family_is_refused(start: Open, capfd: pytest.CaptureFixture[str]) -> None:
    """1.2.3's parameters given to 1.3.0, as servers that bind one version do."""
    old: Any = family_of("1.2.3")

    def change(params: Any) -> None:
        filled = old.RKLLMParam(max_context_len=1024, max_new_tokens=64, top_k=1, top_p=0.9, temperature=0.8)
        filled.model_path, filled.repeat_penalty = params.model_path, 1.1
        filled.extend_param.n_batch, filled.extend_param.enabled_cpus_num = 1, 4
        ctypes.memmove(ctypes.addressof(params), ctypes.addressof(filled), ctypes.sizeof(params))

    assert "The n_batch must be between 1 and 100, but got 0" in refused(start, capfd, "1.3.0", change)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": 3}, "infer mode 3 does not exist"),
        ({"keep_history": 7}, "keep_history is 7"),
        ({"sampling": NativeSampling(top_p=2.0)}, "top_p is 2"),
    ],
    ids=["mode", "history", "sampling"],
)
def test_a_run_no_right_binding_would_ask_for_is_an_error(
    start: Open, capfd: pytest.CaptureFixture[str], fields: dict[str, Any], words: str
) -> None:
    runtime = start(version="1.3.0")
    assert runtime.run([1], **fields) == -1 and runtime.heard[-1].state is State.ERROR
    assert words in capfd.readouterr().err
    assert runtime.run([1]) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_type": 1, "n_tokens": 0}, "the input has 0 tokens"),
        ({"input_type": 1, "n_tokens": 1, "first": 5000}, "token 5000 is not in a vocabulary"),
        ({"input_type": 1, "n_tokens": 1, "first": -1}, "token -1 is not in a vocabulary"),
        ({"input_type": 17}, "input type 17 does not exist"),
        ({"input_type": 3}, "no vision"),
        ({"input_type": 0, "role": b"assistant"}, "the role must be user or tool"),
        ({"input_type": 0, "role": None}, "the role must be user or tool"),
    ],
    ids=["empty", "unknown token", "negative token", "type", "vision", "role", "no role"],
)
def test_an_input_no_right_binding_would_give_is_an_error(
    start: Open, capfd: pytest.CaptureFixture[str], fields: dict[str, Any], words: str
) -> None:
    runtime = start()
    abi: Any = runtime.abi
    given = abi.RKLLMInput(input_type=fields["input_type"], role=fields.get("role", b"user"))
    ids = (ctypes.c_int32 * 1)(fields.get("first", 1))
    if fields["input_type"] == 1:
        given.token_input.input_ids, given.token_input.n_tokens = ids, fields["n_tokens"]
    else:
        given.prompt_input = b"text"
    assert runtime.lib.rkllm_run(runtime.loaded.handle, given, abi.RKLLMInferParam(), None) == -1
    assert runtime.heard[-1].state is State.ERROR and words in capfd.readouterr().err


def test_models_that_do_not_fit_into_one_memory_domain_are_refused(
    start: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    large = SimulatedModel(profile=Profile(memory_mb=3000))
    assert start(large).status == 0
    assert start(large).status == -1 and "failed to malloc npu memory" in capfd.readouterr().err
    assert start(large, memory_domain=1).status == 0


def test_what_is_no_model_and_no_adapter_is_refused(
    start: Open, capfd: pytest.CaptureFixture[str], version: str, tmp_path: Path
) -> None:
    """1.1 calls a load that failed a success; its runs then end in errors."""
    weights = start(version=version).settings.model
    text = weights.read_text()
    for content, words in (
        ("just text\n", "magic" if version == "1.1.4" else "invalid rkllm model!"),
        (text + "colour blue\n", "key colour is not known"),
        (text + "switch.callback_thread perhaps\n", "key switch.callback_thread is not known, or its value is not"),
        (None, "failed to open the model file"),
    ):
        weights.unlink()
        if content is not None:
            weights.write_text(content)
        runtime = start(version=version, weights=weights)
        assert words in capfd.readouterr().err
        assert runtime.status == (0 if version == "1.1.4" else -1)
        if runtime.status == 0:
            assert runtime.run([1]) == -1 and runtime.heard[-1].state is State.ERROR
        weights.touch()
    runtime = start(version=version)
    (tmp_path / "bad").write_text("no adapter")
    assert runtime.abi.load_adapter(runtime.loaded, tmp_path / "bad", "bad") == -1
    assert runtime.abi.load_adapter(runtime.loaded, write_adapter(tmp_path / "good"), "good") == 0


def test_what_a_callback_lends_is_spoilt_when_it_returns(start: Open) -> None:
    """A binding that keeps a pointer reads rubbish, not the text of long ago."""
    runtime = start()
    abi: Any = runtime.abi
    lent: list[tuple[int, bytes, float]] = []

    def address(pointer: Any) -> int:
        return ctypes.cast(pointer, ctypes.c_void_p).value or 0

    def hear(result: Any, userdata: int, state: int) -> int:
        layer = result[0].last_hidden_layer.hidden_states
        if layer:
            lent.append((address(layer), b"", layer[0]))
        elif result[0].text:
            pointer = ctypes.c_void_p.from_address(ctypes.addressof(result[0]) + abi.RKLLMResult.text.offset)
            lent.append((pointer.value or 0, result[0].text, 0))
        return 0

    callback = abi.LLMResultCallback(hear)
    handle = ctypes.c_void_p()
    params: Any = runtime.loaded.alive[0]
    assert runtime.lib.rkllm_init(ctypes.byref(handle), ctypes.byref(params), callback) == 0
    given = abi.RKLLMInput(role=b"user")
    given.prompt_input = b"2 + 2"
    for mode in (0, 1):
        assert runtime.lib.rkllm_run(handle, given, abi.RKLLMInferParam(mode=mode), None) == 0
    text, layer = lent[0], lent[-1]
    assert text[1] == b"2" and ctypes.string_at(text[0], 4) == b"\xdd" * 4
    assert layer[2] == layer[2] and ctypes.string_at(layer[0], 4) == b"\xff" * 4
    runtime.lib.rkllm_destroy(handle)


def test_userdata_comes_back(start: Open, version: str) -> None:
    """Since 1.3.0 that of init stands in for none."""
    runtime = start(version=version)
    abi: Any = runtime.abi
    told: set[int | None] = set()

    def hear(result: Any, userdata: int | None, state: int) -> int:
        told.add(userdata)
        return 0

    callback = abi.LLMResultCallback(hear)
    handle = ctypes.c_void_p()
    params: Any = runtime.loaded.alive[0]
    of_init = abi.RKLLMCallback(result_callback=callback, result_userdata=11) if version == "1.3.0" else callback
    assert runtime.lib.rkllm_init(ctypes.byref(handle), ctypes.byref(params), of_init) == 0
    given = abi.RKLLMInput(input_type=1)
    given.token_input.input_ids, given.token_input.n_tokens = (ctypes.c_int32 * 1)(5), 1
    for userdata in (None, 22):
        told.clear()
        assert runtime.lib.rkllm_run(handle, given, abi.RKLLMInferParam(), userdata) == 0
        assert told == {userdata or (11 if version == "1.3.0" else None)}
    runtime.lib.rkllm_destroy(handle)
