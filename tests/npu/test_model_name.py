"""What a file's name tells."""
# ruff: noqa: E501 - a table reads best with one name a line

from __future__ import annotations

import pytest

from npu.model import is_model_id
from npu.model_name import parse_model_name

KNOWN = [
    # stem, id, first tag, parameters, quantization, context, chip
    ("Qwen_Qwen3-0.6B-w8a8-opt0-hybrid0-npu3-ctx16384-rk3588", "qwen3-0.6b", "qwen3:0.6b", "0.6B", "W8A8", 16384, "rk3588"),
    ("Qwen2.5-3B-Instruct-rk3588-w8a8-opt-1-hybrid-ratio-0.5", "qwen2.5-3b-instruct", "qwen2.5:3b-instruct", "3B", "W8A8", None, "rk3588"),
    ("Name_W8A8_RK3588", "name", "name:latest", "", "W8A8", None, "rk3588"),
    ("name-w8a8_level1_rk3588", "name", "name:latest", "", "W8A8", None, "rk3588"),
    ("x_w8a8_g128_rk3588", "x", "x:latest", "", "W8A8_G128", None, "rk3588"),
    ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct", "smollm2:135m-instruct", "135M", "Q4_1", None, None),
    ("gemma-3-270m-it-Q8_0", "gemma-3-270m-it", "gemma3:270m-it", "270M", "Q8_0", None, None),
    ("DeepSeek-R1-Distill-Qwen-1.5B_W8A8_RK3588", "deepseek-r1-distill-qwen-1.5b", "deepseek-r1-distill-qwen:1.5b", "1.5B", "W8A8", None, "rk3588"),
    ("Llama-3.2-1B-Instruct-Q4_K_M", "llama-3.2-1b-instruct", "llama3.2:1b-instruct", "1B", "Q4_K_M", None, None),
    ("internlm2-1_8b-w8a8-rk3576", "internlm2-1.8b", "internlm2:1.8b", "1.8B", "W8A8", None, "rk3576"),
    ("Mixtral-8x7B-v0.1.Q4_K_S", "mixtral-8x7b-v0.1", "mixtral:8x7b-v0.1", "8X7B", "Q4_K_S", None, None),
    ("Qwen2.5-1.5B-Instruct-16k", "qwen2.5-1.5b-instruct", "qwen2.5:1.5b-instruct", "1.5B", "", 16384, None),
]  # fmt: skip


@pytest.mark.parametrize(("stem", "short", "tag", "parameters", "quantization", "context", "soc"), KNOWN)
def test_names_as_people_write_them(
    stem: str, short: str, tag: str, parameters: str, quantization: str, context: int | None, soc: str | None
) -> None:
    name = parse_model_name(stem)
    assert (name.id, name.tags[0], name.parameters) == (short, tag, parameters)
    assert (name.quantization, name.context_length, name.soc) == (quantization, context, soc)


def test_the_short_tag_is_how_ollama_calls_it() -> None:
    assert parse_model_name("Llama-3.2-1B-Instruct-Q4_K_M").tags == ("llama3.2:1b-instruct", "llama3.2:1b")


@pytest.mark.parametrize(
    "stem", ["", "...", "日本語", "135m", "w8a8", "rk3588", "-_-", "a" * 300, "ctx99999999999999", "Ünï códe 7B"]
)
def test_odd_names_become_a_usable_id(stem: str) -> None:
    assert is_model_id(parse_model_name(stem).id)
