"""A model's template tells how it calls tools and how it thinks."""

from __future__ import annotations

import pytest

from npu.answer_format import MARKERS, NONE, ThinkingFormat, ToolFormat, thinking_format, tool_format


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if tools %}<tool_call>{{ tools }}", ToolFormat.HERMES),
        ("{% if tools %}<tool_call><function=x>", ToolFormat.XML),
        ("{% if tools %}<|python_tag|>", ToolFormat.LLAMA),
        ("{% if tools %}{'[TOOL_CALLS]'}[AVAILABLE_TOOLS]", ToolFormat.MISTRAL),
        ("{% for tool in tools %}<start_function_call>", ToolFormat.GEMMA),
        ("{% for tool in tools %}<|tool_call>call:<tool_call|>", ToolFormat.GEMMA4),
        ("{{ tools }}<｜tool▁calls▁begin｜>", ToolFormat.DEEPSEEK),
        ("{{ message['tool_calls'] }}<｜tool▁calls▁begin｜>", ToolFormat.DEEPSEEK),
        ("{{ message['tool_calls'] }}", None),
        ("{% if tools %}call one", ToolFormat.JSON),
        ("{% if tools %}<tool_call>x<arg_key>", ToolFormat.GLM),
        ("<tool_call>, {{ my_tools }}", None),
        ("{{ messages }}", None),
    ],
)
def test_how_it_calls_tools(template: str, expected: ToolFormat | None) -> None:
    """By what the template writes; one that does nothing with tools has taught none."""
    assert tool_format(None, template) is expected
    assert tool_format("llama", template) is ToolFormat.LLAMA
    assert tool_format(NONE, template) is None


@pytest.mark.parametrize("form", ThinkingFormat)
def test_how_it_thinks(form: ThinkingFormat) -> None:
    """By the end of a thought, which templates mention even where they only leave thoughts out."""
    assert thinking_format(None, "x.split('" + form.closing + "')") is form
    assert thinking_format(NONE, form.closing) is None
    assert thinking_format(form.value, "") is form
    assert thinking_format(None, form.opening) is None


def test_every_format_has_its_markers() -> None:
    """Else its control tokens would be lost."""
    assert set(MARKERS) == set(ToolFormat)
