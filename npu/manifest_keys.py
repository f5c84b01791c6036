"""The keys of a manifest: a table, which the documentation and the reader go by."""

from __future__ import annotations

from collections.abc import Mapping

from npu.answer_format import ThinkingFormat, ToolFormat
from npu.engine import Ability
from npu.engines import ENGINES

KEYS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "id": (str, "the short name; made from the file's name when absent"),
    "names": (list, "further names it answers to, `name:tag` first"),
    "engine": (
        str,
        "what runs it: " + ", ".join(f"`{name}`" for name in sorted(ENGINES)) + "; by the file's suffix when absent",
    ),
    "file": (str, "the weights, in the manifest's folder; may be absent when exactly one file lies there"),
    "context_length": (
        (int, str),
        "tokens the context holds, prompt and answer together; `auto` is the longest that fits into memory",
    ),
    "family": (str, "such as `qwen3`"),
    "parameters": (str, "such as `0.6B`"),
    "quantization": (str, "such as `W8A8`"),
    "soc": (str, "the chip the weights were made for, such as `rk3588`"),
    "abilities": (
        list,
        "what it may be asked for, of "
        + ", ".join(f"`{ability}`" for ability in Ability)
        + "; `text` when absent, and all of them with `echo`",
    ),
    "pooling": (
        str,
        "how the rows of the last layer become an embedding: `last` (when absent) takes the last token's, `mean` the mean",
    ),
    "cached_system_prompt": (
        str,
        "a text file in the manifest's folder: the system prompt most requests begin with, kept in a file as it was read",
    ),
    "rerank_template": (str, "a Jinja file in the manifest's folder, which makes a prompt of `query` and `document`"),
    "fill_in_middle": (
        list,
        "the control tokens for filling gaps; told by its vocabulary when absent, `[]` for a model that fills none",
    ),
    "stop": (list, "strings that end an answer, besides those of a request"),
    "chat_template": (str, "a Jinja file in the manifest's folder, instead of the model's own template"),
    "load": (
        str,
        "when it is loaded: `on-demand` (when absent) with the first request, `preload` with the board, `manual` by hand only",
    ),
    "instances": (
        int,
        "workers that a board has of it, each with the model in memory, where they fit; `1` when absent",
    ),
    "pin": (bool, "whether it stays once it is loaded, until somebody unloads it; `false` when absent"),
    "notes": (list, "sentences its user should know"),
    "sampling": (dict, "how it is sampled when a request does not say: fields of the sampling table below"),
    "template_options": (dict, "variables for the chat template, such as `enable_thinking = false`"),
    "tool_format": (
        str,
        "how it writes calls of tools: "
        + ", ".join(f"`{form}`" for form in ToolFormat)
        + ", or `none`; told by its template when absent, see below",
    ),
    "thinking_format": (
        str,
        "how it marks its thoughts: "
        + ", ".join(f"`{form}`" for form in ThinkingFormat)
        + ", or `none`; told by its template when absent, see below",
    ),
    "engine_options": (dict, "settings of the engine, see below"),
    "base": (str, "the name of another model, whose weights it takes, and whatever it does not say itself"),
    "system": (str, "the system message of chats that have none"),
    "adapter": (str, "the one of the adapters that answers when a request names none"),
    "adapters": (dict, "LoRA adapters by name, each a file in the manifest's folder, see below"),
}
"""Every key a manifest may have, with its TOML type, or types, and its meaning."""

OF_WEIGHTS = (
    *("engine", "file", "family", "parameters", "quantization", "soc", "abilities", "pooling", "adapters"),
    *("cached_system_prompt", "fill_in_middle"),
)
"""What a model that has a base cannot say differently."""
