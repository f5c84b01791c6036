"""Writes neutral values into those fields of C structs that have the same name in every family."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_int32, pointer
from dataclasses import fields
from pathlib import Path
from typing import Any

from npu.errors import PromptRefused
from npu.rkllm.abi.contract import NativeSampling, Run, Settings, Text, Tokens
from npu.rkllm.abi.refusals import name_for_c, path_for_c, text_for_c

PROMPT_INPUT, TOKEN_INPUT = 0, 1
"""`RKLLMInputType`, in every family."""

_SAMPLING = tuple(field.name for field in fields(NativeSampling))


def set_sampling(target: Structure, sampling: NativeSampling) -> None:
    """Into an `RKLLMParam` or an `RKLLMSamplingParam`."""
    for name in _SAMPLING:
        setattr(target, name, getattr(sampling, name))


def set_params(params: Structure, settings: Settings) -> None:
    """Into an `RKLLMParam`: what every family has."""
    params.model_path = path_for_c(settings.model)
    params.max_context_len = settings.context_length
    params.max_new_tokens = settings.max_tokens
    params.skip_special_token = settings.skip_special_tokens
    params.extend_param.base_domain_id = settings.memory_domain
    set_sampling(params, settings.sampling)


def set_host(params: Structure, settings: Settings) -> None:
    """Into an `RKLLMParam` since 1.2.0: what stays outside the NPU, where the settings say so."""
    if settings.keep_tokens is not None:
        params.n_keep = settings.keep_tokens
    if settings.embed_flash is not None:
        params.extend_param.embed_flash = settings.embed_flash
    if settings.cpus:
        params.extend_param.enabled_cpus_num = len(set(settings.cpus))
        params.extend_param.enabled_cpus_mask = sum(1 << core for core in set(settings.cpus))


def set_input(target: Structure, given: Text | Tokens) -> None:
    """Into an `RKLLMInput`: its type and its union. The struct keeps alive what it points at."""
    if isinstance(given, Text):
        target.input_type = PROMPT_INPUT
        target.prompt_input = text_for_c(given.text)
    else:
        target.input_type = TOKEN_INPUT
        target.token_input.input_ids = _ids(given.ids)
        target.token_input.n_tokens = len(given.ids)


def set_role(target: Structure, given: Text | Tokens) -> None:
    """Into an `RKLLMInput` since 1.2.1. A role is always set, even where no template will read it."""
    target.role = text_for_c(given.role) if isinstance(given, Text) else b"user"
    target.enable_thinking = isinstance(given, Text) and given.thinking


def set_adapter_and_cache(params: Structure, run: Run, lora: type[Structure], cache: type[Structure]) -> None:
    """Into an `RKLLMInferParam`, by the family's `RKLLMLoraParam` and `RKLLMPromptCacheParam`."""
    if run.adapter is not None:
        params.lora_params = pointer(lora(lora_adapter_name=text_for_c(run.adapter)))
    if run.cache_file is not None:
        params.prompt_cache_params = pointer(cache(save_prompt_cache=1, prompt_cache_path=path_for_c(run.cache_file)))


def set_adapter(adapter: Structure, path: Path, name: str, scale: float) -> None:
    """Into an `RKLLMLoraAdapter`."""
    adapter.lora_adapter_path = path_for_c(path)
    adapter.lora_adapter_name = name_for_c(name)
    adapter.scale = scale


def _ids(ids: Sequence[int]) -> Any:
    if min(ids) < 0 or max(ids) > 0x7FFFFFFF:  # ctypes would cut it to 32 bits without a word.
        raise PromptRefused("A token id is negative or too large for any vocabulary.")
    return (c_int32 * len(ids))(*ids)
