"""Writes models for the simulator: a ready model folder, and adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from npu.errors import ModelRefused
from npu.simulator.language import Language
from npu.simulator.profile import Profile
from npu.simulator.vocabulary import CHARACTERS, END, Token, tokenizer_json, vocabulary

MAGIC: Final = "RKLLM-SIMULATED 1"
ADAPTER_MAGIC: Final = "RKLLM-SIMULATED-LORA 1"

SWITCHES: Final[Mapping[str, tuple[str, ...]]] = {
    "callback_thread": ("caller", "own"),
    "copies_structs": ("yes", "no"),
    "running_polarity": ("one", "zero"),
    "state_after_abort": ("finish", "error", "none"),
    "error_status": ("minus_one", "zero", "one"),
    "return_two_before_1_3": ("continue", "stop", "drop"),
    "history_zero_clears": ("yes", "no"),
    "after_pause": ("append", "compare"),
    "last_token_cached": ("no", "yes"),
    "adapter_keeps_cache": ("yes", "no"),
    "eos_delivered": ("yes", "no"),
    "null_text_in_waiting_finish": ("yes", "no"),
    "logits_rows": ("all", "last"),
    "prefill_counts_cached": ("no", "yes"),
}
"""Each open question about the vendor's library, with the ways it may be answered; the first is the default.

- `callback_thread`: whether callbacks come on the thread of `rkllm_run` or on one of the library's own.
- `copies_structs`: whether it copies what `rkllm_init` is given, or reads it again during every run.
- `running_polarity`: what `rkllm_is_running` returns during a run, up to 1.2.3.
- `state_after_abort`: the last callback of an aborted run.
- `error_status`: what `rkllm_run` returns after an ERROR callback: -1, 0 or 1.
- `return_two_before_1_3`: what a callback's answer 2 does where it has no meaning: nothing, a pause, or the texts are gone.
- `history_zero_clears`: whether a run with keep_history=0 forgets a conversation that was kept with 1.
- `after_pause`: whether the input after a pause is appended to the cache, or compared with it like any other.
- `last_token_cached`: whether the last token of an answer that was cut short is in the cache.
- `adapter_keeps_cache`: whether the cache of one adapter is reused for another's run, which spoils its answer.
- `eos_delivered`: whether the token that ends an answer is told.
- `null_text_in_waiting_finish`: whether text is NULL there, or empty.
- `logits_rows`: whether logits come for all tokens that were read, or for the last.
- `prefill_counts_cached`: whether the count of prefilled tokens has those in it that were reused.
"""

CHAT_TEMPLATE: Final = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{{- messages[0].content if messages[0].role == 'system' else '' -}}
{{- '\\n\\n# Tools\\n\\n' + tools | tojson + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and tools and loop.first -%}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{{- (message.content or '').split('</think>')[-1].lstrip('\\n') -}}
{%- for call in message.tool_calls or [] -%}
{{- '\\n<tool_call>\\n' + (call.function or call) | tojson + '\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""

ANSWERS: Final[Mapping[str, str]] = {
    "capital of France": "The capital of France is Paris.",
    "2 + 2": "2 + 2 is 4.",
}
"""What every simulated model knows, by a piece of the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedModel:
    """What a simulated model is, how fast it is and how it misbehaves. Counts of tokens are of one run; -1 is never."""

    name: str = "simulated"
    seed: int = 1
    """Models of different seeds say different things."""
    answers: Mapping[str, str] = field(default_factory=lambda: ANSWERS)
    thinking: bool = False
    """It begins its answers in `<think>`."""
    vocab_size: int = 0
    """Ids it has logits for; never fewer than it has tokens."""
    hidden_size: int = 64
    max_context_limit: int = 4096
    npu_cores: int = 3
    full_attention: bool = True
    """Without it no cache is reused."""
    template_parses: bool = True
    """Otherwise the runtime has no template for its text."""
    platform: str = "RK3588"
    driver: str = "0.9.8"
    """Empty where the query fails."""
    toolkit: str = "1.2.3"
    dtype: str = "W8A8"

    profile: Profile = field(default_factory=Profile)
    time_scale: float = 1
    """Real seconds for a simulated one. The figures a run reports are simulated and exact in any case."""
    abort_latency: float = 0
    """Milliseconds before an abort is heard; it is never heard inside a prefill."""
    leak: float = 0
    """Microseconds each row of a hidden layer that was not released adds to the runs after it, until the cache is cleared."""

    init_fail: bool = False
    init_segfault: bool = False
    out_of_npu_memory: bool = False
    error_after: int = -1
    segfault_after: int = -1
    hang_after: int = -1
    exit_after: int = -1
    ignore_abort: bool = False
    null_text: bool = False
    split_utf8: bool = False
    """Texts are pieces of characters, instead of nothing and then the whole one."""
    last_token_late: float = 0
    """Milliseconds the last token of an answer is late, where its end can be known: greedy answers, and at the limit."""
    slow_token: int = -1
    """The token, counted from 0, that takes `slow_token_ms` longer."""
    slow_token_ms: float = 0
    garbage: bool = False
    """It says letters without end, as a model does that was converted badly."""
    wrong_logits: bool = False
    """Its logits are highest for `!`, whatever it says itself."""
    miscount: int = 0
    """Tokens a run's figures tell more than it said."""
    cache_kb: float = 0
    """KB of a token in a file of the prompt cache; 0 is its id and little more."""
    cache_mb_s: float = 0
    """MB of such a file written or read per second; 0 takes no time."""
    cache_save_fail: bool = False
    cache_load_fail: bool = False
    cache_spoiled: bool = False
    """What is loaded of one is not what was written."""

    switches: Mapping[str, str] = field(default_factory=dict)
    """Open questions answered otherwise than `SWITCHES` does by default."""

    def language(self) -> Language:
        """What this model says."""
        return Language(self.seed, self.answers, thinking=self.thinking, garbage=self.garbage)


def write_model(folder: Path, model: SimulatedModel) -> Path:
    """Write a ready model folder: weights, tokenizer, chat template and manifest. Returns the weights' path.

    Raises `ModelRefused` for a switch that is not there, and for text a model file cannot hold.
    """
    tokens = vocabulary()
    lines = "".join(f"{line}\n" for line in _lines(model, tokens))
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{model.name}_{model.dtype.lower()}_{model.platform.lower()}.rkllm"
    weights.write_text(lines, encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokens), ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": "<|endoftext|>",
        "model_max_length": model.max_context_limit,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    manifest = {
        "id": model.name,
        "engine": "rkllm",
        "file": weights.name,
        "context_length": model.max_context_limit,
        "family": "simulated",
        "quantization": model.dtype,
        "soc": model.platform.lower(),
        "notes": ["A simulation: it says words in a fixed order, and knows nothing."],
    }
    # A JSON string, number or list of strings is a TOML one.
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in manifest.items())
    (folder / "manifest.toml").write_text(text, encoding="utf-8")
    return weights


def write_adapter(path: Path) -> Path:
    """Write a LoRA adapter; what it does to a model follows from the name and the scale it is loaded with."""
    path.write_text(f"{ADAPTER_MAGIC}\n", encoding="utf-8")
    return path


def _lines(model: SimulatedModel, tokens: tuple[Token, ...]) -> Iterator[str]:
    yield MAGIC
    values = {one.name: getattr(model, one.name) for one in fields(model)}
    values |= {one.name: getattr(model.profile, one.name) for one in fields(model.profile)}
    for key, value in values.items():
        if key in ("answers", "profile", "switches"):
            continue
        text = f"{value:d}" if isinstance(value, bool) else str(value)
        if "\n" in text:
            raise ModelRefused(f"{key} of a simulated model cannot hold a line break.")
        yield f"{key} {text}"
    for switch, value in model.switches.items():
        if value not in SWITCHES.get(switch, ()):
            there = " or ".join(SWITCHES.get(switch, ())) or f"one of {', '.join(SWITCHES)}"
            raise ModelRefused(f"The simulator has no switch {switch} {value}. There is {there}.")
    for switch, ways in SWITCHES.items():
        yield f"switch.{switch} {model.switches.get(switch, ways[0])}"
    for question, answer in model.answers.items():
        yield f"answer {question.encode().hex()} {answer.encode().hex()}"
    for character in CHARACTERS:
        yield f"character {character.encode().hex()}"
    for token in tokens:
        yield f"{token.kind} {token.data.hex()}"
