"""The tools of OpenAI's chats: how they are taken, and how what is wrong with them is named."""

from __future__ import annotations

from typing import Any

import pytest

from api.errors import HttpProblem
from api.openai.schemas import ChatCompletionBody
from tasks.requests import Tool, ToolCall, ToolChoice
from tests.api.openai.bodies import USER, chat_request, refusal

F: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}


G: dict[str, Any] = {"function": {"name": "g"}}


def test_tools_arrive() -> None:
    """With all that was said of them."""
    request = chat_request(tools=[F, G], parallel_tool_calls=False)
    assert request.tools == (Tool("f", "d", {"type": "object"}, strict=True), Tool("g"))
    assert (request.tool_choice, request.parallel_tool_calls) == (ToolChoice(), False)


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ("none", ToolChoice("none")),
        ("auto", ToolChoice()),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "g"}}, ToolChoice("required", ("g",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [G]}},
            ToolChoice("auto", ("g",)),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [F, G]}},
            ToolChoice("required", ("f", "g")),
        ),
    ],
)
def test_a_choice_of_tools(choice: Any, meant: ToolChoice) -> None:
    """In each of its shapes."""
    assert chat_request(tools=[F, G], tool_choice=choice).tool_choice == meant


@pytest.mark.parametrize(
    ("choice", "meant"),
    [("none", ToolChoice("none")), ("auto", ToolChoice()), ({"name": "g"}, ToolChoice("required", ("g",)))],
)
def test_functions_are_tools_in_older_words(choice: Any, meant: ToolChoice) -> None:
    """One call in an answer, since there was room for no more."""
    request = chat_request(functions=[F["function"], G["function"]], function_call=choice)
    assert [tool.name for tool in request.tools] == ["f", "g"]
    assert (request.tool_choice, request.parallel_tool_calls) == (meant, False)


def test_calls_of_earlier_turns_arrive() -> None:
    """In either form, with what was thought before."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    request = chat_request(
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
            {
                "role": "assistant",
                "tool_calls": [call | {"function": {"name": "f", "arguments": {"a": 1}}}],
                "reasoning": "So.",
            },
            {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": "{}"}},
        ]
    )
    assert [message.tool_calls for message in request.messages] == [
        (ToolCall("c1", "f", "{}"),),
        (ToolCall("c1", "f", '{"a":1}'),),
        (ToolCall("call_function", "g", "{}"),),
    ]
    assert [message.reasoning for message in request.messages] == ["Hm.", "So.", None]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type", "unsupported_parameter"),
        ({"tools": [{"function": {"name": ""}}]}, "tools.0.function.name", "invalid_value"),
        ({"tools": [{"function": {"name": "two words"}}]}, "tools.0.function.name", "invalid_value"),
        ({"tools": [{"function": {}}]}, "tools.0.function.name", "missing_required_parameter"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_required_parameter"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"a": 2**70}}}]},
            "tools.0.function.parameters",
            "invalid_value",
        ),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters", "invalid_type"),
        ({"tools": [G] * 513}, "tools", "invalid_value"),
        ({"tools": "f"}, "tools", "invalid_type"),
        ({"tools": [F], "tool_choice": "some"}, "tool_choice", "invalid_value"),
        ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
        ({"tools": [F], "function_call": "required"}, "function_call", "invalid_value"),
        ({"functions": [{"name": 3}]}, "functions.0.name", "invalid_type"),
        ({"thinking_budget_tokens": -2}, "thinking_budget_tokens", "invalid_value"),
    ],
)
def test_what_is_wrong_with_tools_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    """By its path."""
    assert refusal(ChatCompletionBody, {"messages": [USER], **fields}) == (param, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [F, F]}, "tools"),
        ({"functions": [{"name": "f"}, {"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [F], "tool_choice": G | {"type": "function"}}, "tool_choice"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
    ],
)
def test_a_choice_of_what_is_not_there(fields: dict[str, Any], param: str) -> None:
    """Is refused before anything waits."""
    with pytest.raises(HttpProblem) as refused:
        chat_request(**fields)
    assert (refused.value.problem.param, refused.value.problem.status) == (param, 400)
