"""How a family of models marks in what it says that it thinks, or calls a tool. Its chat template tells."""

from __future__ import annotations

import re
from enum import StrEnum


class ToolFormat(StrEnum):
    """How a call of a tool is written."""

    HERMES = "hermes"
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3."""
    XML = "xml"
    """`<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`: Qwen3-Coder, Qwen 3.5."""
    GLM = "glm"
    """`<tool_call>name<arg_key>…</arg_key><arg_value>…</arg_value></tool_call>`: GLM 4.5 and later."""
    LLAMA = "llama"
    """`{"name": …, "parameters": {…}}` as the whole answer, or behind `<|python_tag|>`: Llama 3.1 to 3.3."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS]` and a list of objects, or `[TOOL_CALLS]name[ARGS]{…}`: Mistral, old and new."""
    GEMMA = "gemma"
    """`<start_function_call>call:name{key:<escape>…<escape>}<end_function_call>`: FunctionGemma."""
    GEMMA4 = "gemma4"
    """`<|tool_call>call:name{key:<|"|>…<|"|>}<tool_call|>`: Gemma 4."""
    DEEPSEEK = "deepseek"
    """`<｜tool▁call▁begin｜>` and the like: DeepSeek V3 and R1."""
    JSON = "json"
    """One object, or a list of them, as the whole answer: models that were taught no format of their own."""


class ThinkingFormat(StrEnum):
    """How a thought is marked, at the beginning of an answer."""

    THINK = "think"
    """`<think>…</think>`: Qwen, DeepSeek and most others."""
    BRACKETS = "brackets"
    """`[THINK]…[/THINK]`: Magistral."""
    SEED = "seed"
    """`<seed:think>…</seed:think>`: Seed-OSS."""

    CHANNEL = "channel"
    """`<|channel>thought…<channel|>`: Gemma 4."""

    @property
    def opening(self) -> str:
        """What a thought begins with."""
        return _THOUGHTS[self][0]

    @property
    def closing(self) -> str:
        """What a thought ends with."""
        return _THOUGHTS[self][1]

    @property
    def markers(self) -> tuple[str, str]:
        """What may be a control token in these two."""
        return self.opening.removesuffix("thought"), self.closing


_THOUGHTS = {
    ThinkingFormat.THINK: ("<think>", "</think>"),
    ThinkingFormat.BRACKETS: ("[THINK]", "[/THINK]"),
    ThinkingFormat.SEED: ("<seed:think>", "</seed:think>"),
    ThinkingFormat.CHANNEL: ("<|channel>thought", "<channel|>"),
}

NONE = "none"
"""What a manifest says of a model that calls no tools, or does not think, whatever its template holds."""

HIDDEN = ThinkingFormat.THINK.closing
"""What stands for the template of a model that only its runtime can render: its thoughts are known by their usual marks."""

MARKERS: dict[ToolFormat, tuple[str, ...]] = {
    ToolFormat.HERMES: ("<tool_call>", "</tool_call>"),
    ToolFormat.XML: ("<tool_call>", "</tool_call>"),
    ToolFormat.GLM: ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ToolFormat.LLAMA: ("<|python_tag|>",),
    ToolFormat.MISTRAL: ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    ToolFormat.GEMMA: ("<start_function_call>", "<end_function_call>", "<escape>", "<start_function_response>"),
    ToolFormat.GEMMA4: ("<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>"),
    ToolFormat.DEEPSEEK: (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    ToolFormat.JSON: ("<|tool_call|>",),
}
"""What may be a control token in these formats: engines give such a token no bytes."""

_SIGNS: tuple[tuple[str, ToolFormat | None], ...] = (
    ("<arg_key>", ToolFormat.GLM),  # before Hermes', which begins like it
    ("<|channel|>", None),  # gpt-oss, whose whole answer is written in channels
    ("<function=", ToolFormat.XML),
    ("<tool_call>", ToolFormat.HERMES),
    ("[TOOL_CALLS]", ToolFormat.MISTRAL),
    ("<start_function_call>", ToolFormat.GEMMA),
    ("<|tool_call>", ToolFormat.GEMMA4),
    ("<｜tool▁call", ToolFormat.DEEPSEEK),
    ("<|python_tag|>", ToolFormat.LLAMA),
    ('"parameters": dictionary', ToolFormat.LLAMA),
)


def tool_format(named: str | None, template: str) -> ToolFormat | None:
    """The one that a manifest has `named`, else the one the model's template teaches it; None where there is none, or one
    that is unknown here."""
    if named is not None:
        return None if named == NONE else ToolFormat(named)
    if not knows_tools(template) and not knows_calls(template):
        return None
    fallback = ToolFormat.JSON if knows_tools(template) else None
    return next((form for sign, form in _SIGNS if sign in template), fallback)


def knows_tools(template: str) -> bool:
    """Whether a template tells its model of `tools`."""
    return re.search(r"\btools\b", template) is not None


def knows_calls(template: str) -> bool:
    """Whether a template writes the calls of earlier turns; some do that and leave it to others to tell of the tools."""
    return "tool_calls" in template


def thinking_format(named: str | None, template: str) -> ThinkingFormat | None:
    """The one that a manifest has `named`, else the one whose marks the model's template mentions, be it to leave the
    thoughts of earlier turns out; None where there is none."""
    if named is not None:
        return None if named == NONE else ThinkingFormat(named)
    return next((form for form in ThinkingFormat if form.closing in template), None)
