"""librkllmrt 1.2.0, as external/rkllm/abi/1.2.0.json has it, in the order of the vendor's header."""

from __future__ import annotations

from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    byref,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from enum import IntEnum
from pathlib import Path
from typing import Any

from npu.rkllm.abi.arguments import set_adapter, set_adapter_and_cache, set_host, set_input, set_params
from npu.rkllm.abi.contract import Capabilities, Loaded, OnResult, Prototype, Result, Run, Settings, State
from npu.rkllm.abi.refusals import check_run, check_settings
from npu.rkllm.abi.results import adaptor, hidden_rows, logit_rows

RUNTIMES = ("1.2.0",)

CAPABILITIES = Capabilities(
    max_context=16384,
    clear_cache_arguments=2,
    hidden_states=True,
    logits=True,
    adapters=True,
    cache_files=True,
    keep_history=True,
    prefix_reuse=True,
    keep_tokens=True,
    chat_template=True,
    embed_flash=True,
    cpu_choice=True,
    memory_domains=True,
)

LLMHandle = c_void_p


class LLMCallState(IntEnum):
    RKLLM_RUN_NORMAL = 0
    RKLLM_RUN_WAITING = 1
    RKLLM_RUN_FINISH = 2
    RKLLM_RUN_ERROR = 3


class RKLLMInputType(IntEnum):
    RKLLM_INPUT_PROMPT = 0
    RKLLM_INPUT_TOKEN = 1
    RKLLM_INPUT_EMBED = 2
    RKLLM_INPUT_MULTIMODAL = 3


class RKLLMInferMode(IntEnum):
    RKLLM_INFER_GENERATE = 0
    RKLLM_INFER_GET_LAST_HIDDEN_LAYER = 1
    RKLLM_INFER_GET_LOGITS = 2


class RKLLMExtendParam(Structure):
    _fields_ = [
        ("base_domain_id", c_int32),
        ("embed_flash", c_int8),
        ("enabled_cpus_num", c_int8),
        ("enabled_cpus_mask", c_uint32),
        ("reserved", c_uint8 * 106),
    ]


class RKLLMParam(Structure):
    _fields_ = [
        ("model_path", c_char_p),
        ("max_context_len", c_int32),
        ("max_new_tokens", c_int32),
        ("top_k", c_int32),
        ("n_keep", c_int32),
        ("top_p", c_float),
        ("temperature", c_float),
        ("repeat_penalty", c_float),
        ("frequency_penalty", c_float),
        ("presence_penalty", c_float),
        ("mirostat", c_int32),
        ("mirostat_tau", c_float),
        ("mirostat_eta", c_float),
        ("skip_special_token", c_bool),
        ("is_async", c_bool),
        ("img_start", c_char_p),
        ("img_end", c_char_p),
        ("img_content", c_char_p),
        ("extend_param", RKLLMExtendParam),
    ]


class RKLLMLoraAdapter(Structure):
    _fields_ = [
        ("lora_adapter_path", c_char_p),
        ("lora_adapter_name", c_char_p),
        ("scale", c_float),
    ]


class RKLLMEmbedInput(Structure):
    _fields_ = [
        ("embed", POINTER(c_float)),
        ("n_tokens", c_size_t),
    ]


class RKLLMTokenInput(Structure):
    _fields_ = [
        ("input_ids", POINTER(c_int32)),
        ("n_tokens", c_size_t),
    ]


class RKLLMMultiModelInput(Structure):
    _fields_ = [
        ("prompt", c_char_p),
        ("image_embed", POINTER(c_float)),
        ("n_image_tokens", c_size_t),
    ]


class _Given(Union):
    _fields_ = [
        ("prompt_input", c_char_p),
        ("embed_input", RKLLMEmbedInput),
        ("token_input", RKLLMTokenInput),
        ("multimodal_input", RKLLMMultiModelInput),
    ]


class RKLLMInput(Structure):
    _anonymous_ = ("given",)
    _fields_ = [
        ("input_type", c_int),
        ("given", _Given),
    ]


class RKLLMLoraParam(Structure):
    _fields_ = [
        ("lora_adapter_name", c_char_p),
    ]


class RKLLMPromptCacheParam(Structure):
    _fields_ = [
        ("save_prompt_cache", c_int),
        ("prompt_cache_path", c_char_p),
    ]


class RKLLMInferParam(Structure):
    _fields_ = [
        ("mode", c_int),
        ("lora_params", POINTER(RKLLMLoraParam)),
        ("prompt_cache_params", POINTER(RKLLMPromptCacheParam)),
        ("keep_history", c_int),
    ]


class RKLLMResultLastHiddenLayer(Structure):
    _fields_ = [
        ("hidden_states", POINTER(c_float)),
        ("embd_size", c_int),
        ("num_tokens", c_int),
    ]


class RKLLMResultLogits(Structure):
    _fields_ = [
        ("logits", POINTER(c_float)),
        ("vocab_size", c_int),
        ("num_tokens", c_int),
    ]


class RKLLMResult(Structure):
    _fields_ = [
        ("text", c_char_p),
        ("token_id", c_int32),
        ("last_hidden_layer", RKLLMResultLastHiddenLayer),
        ("logits", RKLLMResultLogits),
    ]


LLMResultCallback = CFUNCTYPE(None, POINTER(RKLLMResult), c_void_p, c_int)

PROTOTYPES = (
    Prototype("rkllm_createDefaultParam", RKLLMParam, ()),
    Prototype("rkllm_init", c_int, (POINTER(LLMHandle), POINTER(RKLLMParam), LLMResultCallback)),
    Prototype("rkllm_load_lora", c_int, (LLMHandle, POINTER(RKLLMLoraAdapter))),
    Prototype("rkllm_load_prompt_cache", c_int, (LLMHandle, c_char_p)),
    Prototype("rkllm_release_prompt_cache", c_int, (LLMHandle,)),
    Prototype("rkllm_destroy", c_int, (LLMHandle,)),
    Prototype("rkllm_run", c_int, (LLMHandle, POINTER(RKLLMInput), POINTER(RKLLMInferParam), c_void_p)),
    # Declared, never called: it was reported to hang or to stay silent. A thread of ours and rkllm_run do the same.
    Prototype("rkllm_run_async", c_int, (LLMHandle, POINTER(RKLLMInput), POINTER(RKLLMInferParam), c_void_p)),
    Prototype("rkllm_abort", c_int, (LLMHandle,)),
    Prototype("rkllm_is_running", c_int, (LLMHandle,)),
    Prototype("rkllm_clear_kv_cache", c_int, (LLMHandle, c_int)),
    Prototype("rkllm_set_chat_template", c_int, (LLMHandle, c_char_p, c_char_p, c_char_p)),
)


def default_params(lib: CDLL) -> RKLLMParam:
    params: RKLLMParam = lib.rkllm_createDefaultParam()
    return params


def init(lib: CDLL, settings: Settings, on_result: OnResult) -> Loaded:
    return init_with(lib, settings, result_callback(on_result, settings.slots))


def init_with(lib: CDLL, settings: Settings, callback: Any) -> Loaded:
    check_settings(settings, CAPABILITIES)
    params = default_params(lib)
    set_params(params, settings)
    set_host(params, settings)
    handle = LLMHandle()
    status = lib.rkllm_init(byref(handle), byref(params), callback)
    return Loaded(lib, status, handle, settings.slots, [params, callback])


def infer(loaded: Loaded, run: Run) -> int:
    check_run(run, CAPABILITIES, loaded.slots)
    given = RKLLMInput()
    set_input(given, run.inputs[0])
    params = RKLLMInferParam(mode=run.mode, keep_history=run.keep_history)
    set_adapter_and_cache(params, run, RKLLMLoraParam, RKLLMPromptCacheParam)
    status: int = loaded.lib.rkllm_run(loaded.handle, byref(given), byref(params), run.number or None)
    return status


def load_adapter(loaded: Loaded, path: Path, name: str, scale: float = 1.0) -> int:
    adapter = RKLLMLoraAdapter()
    set_adapter(adapter, path, name, scale)
    loaded.alive.append(adapter)
    status: int = loaded.lib.rkllm_load_lora(loaded.handle, byref(adapter))
    return status


def clear_cache(loaded: Loaded, keep_system_prompt: bool = False) -> int:
    status: int = loaded.lib.rkllm_clear_kv_cache(loaded.handle, keep_system_prompt)
    return status


def cache_sizes(loaded: Loaded) -> tuple[int, ...] | None:
    return None


def result_callback(on_result: OnResult, slots: int) -> Any:
    return LLMResultCallback(adaptor(read_result, on_result, slots, CAPABILITIES.answers))


def read_result(result: Structure, state: State) -> Result:
    return Result(text=result.text or b"", token=result.token_id, hidden=hidden_rows(result), logits=logit_rows(result))
