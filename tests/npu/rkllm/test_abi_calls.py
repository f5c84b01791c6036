"""What the calls of each family pass to C, read by C: a small library is compiled from the family's table."""

from __future__ import annotations

import ctypes
import gc
import subprocess
from pathlib import Path
from typing import Any

import pytest

from npu.rkllm.abi import Answer, Mode, NativeSampling, Perf, Result, Run, Settings, State, Text, Tokens, bind
from tests.npu.rkllm.tables import ABIS, CC, MODEL, c_declarations, family_name, table_of

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")

SOURCE = r"""
static char notes[65536]; static int length; static float numbers[6] = {1, 2, 3, 4, 5, 6};
int printf(const char *, ...); int vsnprintf(char *, size_t, const char *, __builtin_va_list);
static void note(const char *format, ...) {
    __builtin_va_list rest; __builtin_va_start(rest, format);
    length += vsnprintf(notes + length, sizeof notes - length, format, rest); __builtin_va_end(rest);
}
static const char *or_null(const char *text) { return text ? text : "NULL"; }
const char *take_notes(void) { length = 0; return notes; }

static RKLLMParam kept; static LLMResultCallback tell; static int slots = 1;
#if HAS_CALLBACK_STRUCT
static RKLLMCallback *callbacks;
#endif

RKLLMParam rkllm_createDefaultParam(void) {
    RKLLMParam param; __builtin_memset(&param, 0, sizeof param);
    param.max_new_tokens = 77; param.top_p = 0.25f; param.mirostat_eta = 0.125f; param.skip_special_token = 0;
    param.extend_param.base_domain_id = 9;
    return param;
}
int rkllm_init(LLMHandle *handle, RKLLMParam *param, INIT_ARGUMENT callback) {
    kept = *param;  /* The strings are not copied: they must outlive the call. */
    *handle = (LLMHandle)0x1234;
#if HAS_CALLBACK_STRUCT
    callbacks = callback; tell = callback->result_callback;
    note("callbacks %d %d|", callback->tokenizer_callback == 0, callback->embed_callback == 0);
#else
    tell = callback;
#endif
#if HAS_BATCHES
    slots = param->extend_param.n_batch;
#endif
    return 0;
}
static void describe(void) {
    note("model %s context %d new %d ", or_null(kept.model_path), kept.max_context_len, kept.max_new_tokens);
    note("top_k %d top_p %g temperature %g penalties %g %g %g mirostat %d %g %g skip %d async %d domain %d|",
         kept.top_k, kept.top_p, kept.temperature, kept.repeat_penalty, kept.frequency_penalty, kept.presence_penalty,
         kept.mirostat, kept.mirostat_tau, kept.mirostat_eta, kept.skip_special_token, kept.is_async,
         kept.extend_param.base_domain_id);
#if HAS_HOST
    note("keep %d flash %d cpus %d %x|", kept.n_keep, kept.extend_param.embed_flash, kept.extend_param.enabled_cpus_num,
         kept.extend_param.enabled_cpus_mask);
#endif
#if HAS_IGNORE_EOS
    note("ignore %d|", kept.ignore_eos_token);
#endif
}
int rkllm_run(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *param, void *userdata) {
    describe();
    note("handle %d userdata %ld mode %d lora %s cache %d %s|", handle == (LLMHandle)0x1234, (long)userdata, param->mode,
         param->lora_params ? param->lora_params->lora_adapter_name : "NULL",
         param->prompt_cache_params ? param->prompt_cache_params->save_prompt_cache : 0,
         param->prompt_cache_params ? param->prompt_cache_params->prompt_cache_path : "NULL");
#if HAS_HISTORY
    note("history %d|", param->keep_history);
#endif
#if HAS_RUN_SAMPLING
    note("limit %d sampling %d %g|", param->max_new_tokens, param->sampling_params ? param->sampling_params->top_k : -1,
         param->sampling_params ? param->sampling_params->mirostat_eta : -1);
#endif
    RKLLMResult results[slots]; __builtin_memset(results, 0, sizeof results);
    for (int slot = 0; slot < slots; slot++) {
#if HAS_ROLES
        note("role %s think %d ", input[slot].role, input[slot].enable_thinking);
#endif
        if (input[slot].input_type == RKLLM_INPUT_TOKEN) {
            for (size_t i = 0; i < input[slot].token_input.n_tokens; i++) note("%d,", input[slot].token_input.input_ids[i]);
            results[slot].token_id = input[slot].token_input.input_ids[input[slot].token_input.n_tokens - 1];
        } else {
            note("%s", input[slot].prompt_input);
            results[slot].text = input[slot].prompt_input;
        }
        note("|");
    }
    LLMCallState state = RKLLM_RUN_NORMAL;
    if (param->mode == RKLLM_INFER_GET_LAST_HIDDEN_LAYER) {
        results[0].last_hidden_layer.hidden_states = numbers;
        results[0].last_hidden_layer.embd_size = 3; results[0].last_hidden_layer.num_tokens = 2;
#if HAS_HIDDEN_STATE
        state = RKLLM_RUN_GET_LAST_HIDDEN_LAYER;
#endif
    }
#if RETURNS
    note("answered %d|", tell(results, userdata, state));
#else
    tell(results, userdata, state);
#endif
    __builtin_memset(results, 0, sizeof results);
#if HAS_PERF
    results[0].perf.prefill_time_ms = 12.5f; results[0].perf.prefill_tokens = 3; results[0].perf.generate_time_ms = 250;
    results[0].perf.generate_tokens = 10; results[0].perf.memory_usage_mb = 900;
#endif
    tell(results, userdata, RKLLM_RUN_FINISH);
    return 0;
}
int rkllm_load_lora(LLMHandle handle, RKLLMLoraAdapter *adapter) {
    note("%s as %s at %g", adapter->lora_adapter_path, adapter->lora_adapter_name, adapter->scale); return 0;
}
#if CLEAR == 2
int rkllm_clear_kv_cache(LLMHandle handle, int keep) { note("keep %d", keep); return 5; }
#elif CLEAR == 4
int rkllm_clear_kv_cache(LLMHandle handle, int keep, int *start, int *end) {
    note("keep %d ranges %d %d", keep, start != 0, end != 0); return 5;
}
int rkllm_get_kv_cache_size(LLMHandle handle, int *sizes) {
    for (int slot = 0; slot < slots; slot++) sizes[slot] = 40 + slot;
    return 0;
}
#endif
"""


def names_of(abi: Any) -> dict[str, Any]:
    """What the source above is told of a family, from its table."""
    table, can = table_of(abi), abi.CAPABILITIES
    init = next(function for function in table["functions"] if function["name"] == "rkllm_init")
    return {
        "INIT_ARGUMENT": init["arguments"][2][1],
        "HAS_CALLBACK_STRUCT": int("*" in init["arguments"][2][1]),
        "HAS_HIDDEN_STATE": int("RKLLM_RUN_GET_LAST_HIDDEN_LAYER" in table["enums"][0]["values"]),
        "RETURNS": int(table["callbacks"][0]["returns"] == "int"),
        "HAS_BATCHES": int(can.batches),
        "HAS_HOST": int(can.cpu_choice),
        "HAS_IGNORE_EOS": int(can.ignore_eos),
        "HAS_HISTORY": int(can.keep_history),
        "HAS_RUN_SAMPLING": int(can.per_run_sampling),
        "HAS_ROLES": int(can.roles),
        "HAS_PERF": int(can.perf),
        "CLEAR": can.clear_cache_arguments,
    }


class Library:
    """A family's library, loaded and listened to."""

    def __init__(self, abi: Any, path: Path, **settings: Any) -> None:
        self.abi = abi
        self.lib = ctypes.CDLL(str(path))
        self.lib.take_notes.restype = ctypes.c_char_p
        bind(self.lib, abi)
        self.told: list[tuple[State, tuple[Result, ...]]] = []
        self.numbers: set[int] = set()
        self.rows: list[list[float]] = []
        self.answer = Answer.CONTINUE
        wanted = Settings(model=Path("/m.rkllm"), context_length=4096, max_tokens=512, **settings)
        self.loaded = abi.init(self.lib, wanted, self.listen)
        gc.collect()

    def listen(self, state: State, results: tuple[Result, ...], number: int) -> Answer:
        self.told.append((state, results))
        self.numbers.add(number)
        self.rows += [[*result.hidden.copy()] for result in results if result.hidden]
        return self.answer

    def notes(self) -> str:
        taken: bytes = self.lib.take_notes()
        return taken.decode()


@pytest.fixture(params=ABIS, ids=family_name, scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A family, and a library of its layout."""
    abi = request.param
    for struct in table_of(abi)["structs"]:  # A wrong one would not fail below, but crash.
        assert ctypes.sizeof(getattr(abi, struct["name"])) == struct[MODEL][0], struct["name"]
    path = tmp_path_factory.mktemp("library") / "librkllmrt.so"
    defined = "".join(f"#define {name} {value}\n" for name, value in names_of(abi).items())
    known = {"createDefaultParam", "init", "run", "load_lora", "clear_kv_cache", "get_kv_cache_size"}
    rest = [function["name"] for function in table_of(abi)["functions"] if function["name"][6:] not in known]
    stubs = "".join(f"int {name}(void) {{ return 0; }}\n" for name in rest)
    assert CC is not None
    subprocess.run(
        [*CC, "-std=gnu11", "-shared", "-fPIC", "-w", "-o", str(path), "-x", "c", "-"],
        input=c_declarations(table_of(abi)) + defined + SOURCE + stubs,
        text=True,
        check=True,
        timeout=60,
    )
    return abi, path


def test_a_plain_run(built: tuple[Any, Path]) -> None:
    """Settings, tokens and results arrive as they were meant, and what init was given outlives it."""
    abi, path = built
    library = Library(abi, path, memory_domain=1, sampling=NativeSampling(top_k=20, frequency_penalty=0.5, mirostat=2))
    assert (library.loaded.status, library.loaded.handle.value) == (0, 0x1234)
    first = library.notes()
    assert abi.infer(library.loaded, Run(inputs=[Tokens([5, 151_936, 7])])) == 0
    text = library.notes()
    assert (
        "model /m.rkllm context 4096 new 512 top_k 20 top_p 0.9 temperature 0.8 penalties 1.1 0.5 0 mirostat 2 5 0.1 "
        in text
    )
    assert "skip 1 async 0 domain 1|" in text
    assert "handle 1 userdata 0 mode 0 lora NULL cache 0 NULL|" in text
    assert "5,151936,7,|" in text
    assert [(state, result.token) for state, (result,) in library.told] == [(State.NORMAL, 7), (State.FINISH, 0)]
    perf = library.told[-1][1][0].perf
    assert perf == (Perf(12.5, 3, 250.0, 10, 900.0) if abi.CAPABILITIES.perf else None)
    if abi.CAPABILITIES.roles:
        assert "role user think 0 5," in text
    if abi.CAPABILITIES.per_run_sampling:
        assert "callbacks 1 1|" in first
        assert "limit 0 sampling -1 -1|" in text


def test_the_librarys_own_defaults_are_read_and_kept(built: tuple[Any, Path]) -> None:
    """The struct comes back whole, by value; what settings do not say stays."""
    abi, path = built
    library = Library(abi, path)
    params = abi.default_params(library.lib)
    assert (params.max_new_tokens, params.top_p, params.mirostat_eta) == (77, 0.25, 0.125)
    assert params.extend_param.base_domain_id == 9
    abi.infer(library.loaded, Run(inputs=[Text("Hi")]))
    assert "keep 0 flash 0 cpus 0 0|" in library.notes() or not abi.CAPABILITIES.cpu_choice


def test_text(built: tuple[Any, Path]) -> None:
    """As UTF-8, from a user who may think."""
    abi, path = built
    library = Library(abi, path)
    assert abi.infer(library.loaded, Run(inputs=[Text("日本")])) == 0
    assert "role user think 1 日本|" in library.notes() or not abi.CAPABILITIES.roles
    assert library.told[0][1][0].text == "日本".encode()


def test_everything_a_run_may_ask(built: tuple[Any, Path]) -> None:
    """An adapter and a cache file everywhere; the rest where it can be asked."""
    abi, path = built
    can = abi.CAPABILITIES
    host = {"keep_tokens": 5, "embed_flash": True, "cpus": (4, 5, 6, 7, 7)} if can.cpu_choice else {}
    library = Library(abi, path, **host, **({"ignore_eos": True} if can.ignore_eos else {}))
    assert abi.load_adapter(library.loaded, Path("/a.rkllm"), "poet", 0.5) == 0
    assert library.notes().endswith("/a.rkllm as poet at 0.5")
    sampling, limit = (NativeSampling(top_k=1, mirostat_eta=0.5), 9) if can.per_run_sampling else (None, None)
    library.answer = Answer.PAUSE
    run = Run(
        inputs=[Tokens([1])],
        mode=Mode.HIDDEN,
        keep_history=can.keep_history,
        sampling=sampling,
        max_tokens=limit,
        adapter="poet",
        cache_file=Path("/c.bin"),
        number=2**40,
    )
    assert abi.infer(library.loaded, run) == 0
    text = library.notes()
    assert f"userdata {2**40} " in text and library.numbers == {2**40}
    assert "mode 1 lora poet cache 1 /c.bin|" in text
    assert ("keep 5 flash 1 cpus 4 f0|" in text) == can.cpu_choice
    assert ("history 1|" in text) == can.keep_history
    assert ("ignore 1|" in text) == can.ignore_eos
    assert ("limit 9 sampling 1 0.5|" in text) == can.per_run_sampling
    assert ("answered 1|" in text) == (Answer.PAUSE in can.answers)
    assert library.told[0][0] is State.NORMAL and library.rows == [[1, 2, 3, 4, 5, 6]]


def test_slots_lie_side_by_side(built: tuple[Any, Path]) -> None:
    """Inputs on the way down, results on the way up."""
    abi, path = built
    if not abi.CAPABILITIES.batches:
        return
    library = Library(abi, path, slots=3)
    inputs: list[Text | Tokens] = [Tokens([1, 2]), Text("Hi", role="tool", thinking=False), Tokens([3])]
    assert abi.infer(library.loaded, Run(inputs=inputs)) == 0
    assert "|role user think 0 1,2,|role tool think 0 Hi|role user think 0 3,|" in library.notes()
    assert [(result.text, result.token) for result in library.told[0][1]] == [(b"", 2), (b"Hi", 0), (b"", 3)]
    assert abi.cache_sizes(library.loaded) == (40, 41, 42)


def test_clearing(built: tuple[Any, Path]) -> None:
    """With as many arguments as the family takes, and its own status back."""
    abi, path = built
    library = Library(abi, path)
    library.notes()
    status = abi.clear_cache(library.loaded, keep_system_prompt=True)
    expected = {0: (0, None), 2: (5, "keep 1"), 4: (5, "keep 1 ranges 0 0")}[abi.CAPABILITIES.clear_cache_arguments]
    assert status == expected[0]
    if expected[1]:
        assert library.notes() == expected[1]
    if not abi.CAPABILITIES.cache_size:
        assert abi.cache_sizes(library.loaded) is None
