"""The fields of a response's body: what is taken, and how what is not is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.body import check
from api.errors import HttpProblem
from api.openai.responses.head import head_of
from api.openai.responses.items import with_types
from api.openai.responses.request import to_request
from api.openai.responses.schemas import NEEDED, REFUSED_IN_RESPONSES, ResponseBody
from api.openai.responses.stored import keep, writer_of
from api.openai.responses.tools import offer
from api.settings import ApiSettings
from tasks.requests import ChatRequest, JsonObject, Message, SamplingOptions, ToolChoice, decode_request, encode_request

FUNCTION = {"type": "function", "name": "f"}
SPACE = {"type": "namespace", "name": "ns", "tools": [FUNCTION, {"type": "file_search"}]}


def request(body: dict[str, Any]) -> ChatRequest:
    """What the route makes of a body."""
    known = check(body, ResponseBody, ApiSettings())
    offered = offer(known.tools)
    sent = body.get("input") or []
    items = with_types([{"role": "user", "content": sent}] if isinstance(sent, str) else sent)
    # What others refer to is known by then.
    made = to_request(known, [item for item in items if item["type"] != "item_reference"], offered)
    assert decode_request(encode_request(made)) == made
    head = head_of(known, offered, "a" * 22, "tiny", 1)
    assert writer_of(keep(head).head).head == head
    return made


def refusal(**fields: Any) -> tuple[str | None, str | None]:
    """Parameter and code by which a body with these fields is refused."""
    with pytest.raises(HttpProblem) as caught:
        request({"input": "Hi"} | fields)
    assert caught.value.problem.status == 400
    return caught.value.problem.param, caught.value.problem.code


@pytest.mark.parametrize("field", sorted(REFUSED_IN_RESPONSES))
def test_what_has_another_name_here_is_refused_by_name(field: str) -> None:
    """With one of its values that asks for something; null is nothing."""
    assert refusal(**{field: 3}) == (field, "unsupported_parameter")
    request({"input": "Hi", field: None})
    for neutral in REFUSED_IN_RESPONSES[field][0]:
        request({"input": "Hi", field: neutral})


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": 5}, "input", "invalid_value"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": ["Hi"]}, "input.0", "invalid_type"),
        ({"input": [{}]}, "input.0.role", "missing_required_parameter"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input.0.content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": 5}]}, "input.0.content", "invalid_type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input.0.content.0",
            "unsupported_content",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "reasoning_text", "text": "x"}]}]},
            *("input.0.content", "unsupported_content"),
        ),
        ({"input": [{"type": "reasoning", "summary": [{"type": "text"}]}]}, "input.0.summary.0.type", "invalid_value"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id", "missing_required_parameter"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output", "missing_required_parameter"),
        ({"input": [{"type": "mcp_call", "id": "x"}]}, "input.0.type", "unsupported_content"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"truncation": "some"}, "truncation", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_value"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_value"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "missing_required_parameter"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools", "invalid_value"),
        ({"tools": [FUNCTION | {"parameters": {"x": 2**70}}]}, "", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [FUNCTION]}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "web_search"}, "tools": [FUNCTION]}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}}, "tool_choice", "invalid_value"),
        ({"background": True, "store": False}, "background", "invalid_value"),
        ({"reasoning": {"effort": "wild"}}, "reasoning.effort", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(fields: dict[str, Any], param: str, code: str) -> None:
    """Named as the client wrote it."""
    assert refusal(**fields) == (param, code)


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ("none", ToolChoice("none")),
        ("auto", ToolChoice("auto")),
        ("required", ToolChoice("required")),
        (None, ToolChoice("auto")),
        ({"type": "function", "name": "f"}, ToolChoice("required", ("f",))),
        ({"type": "function", "name": "f", "namespace": "ns"}, ToolChoice("required", ("ns__f",))),
        ({"type": "allowed_tools", "mode": "auto", "tools": [FUNCTION]}, ToolChoice("auto", ("f",))),
        ({"type": "allowed_tools", "mode": "required", "tools": [FUNCTION]}, ToolChoice("required", ("f",))),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}, ToolChoice("none")),
    ],
)
def test_every_choice_of_tools_arrives(asked: Any, choice: ToolChoice) -> None:
    """Those that a server would run are not there to be chosen."""
    made = request({"input": "Hi", "tools": [FUNCTION, SPACE, {"type": "web_search"}], "tool_choice": asked})
    assert made.tool_choice == choice
    assert [tool.name for tool in made.tools] == ["f", "ns__f"]


def test_every_other_field_arrives() -> None:
    """Sampling included, of which the wire has less than we take."""
    made = request(
        {
            "input": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "top_k": 3,
            "seed": 7,
            "stop": ["x"],
            "max_output_tokens": 4,
            "truncation": "auto",
            "text": {"format": {"type": "json_object"}},
            "parallel_tool_calls": False,
            "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        }
    )
    assert made == ChatRequest(
        messages=(Message("system", "Be kind."), Message("user", "Hi")),
        sampling=SamplingOptions(temperature=0.5, top_k=3, seed=7),
        stop=("x",),
        max_tokens=4,
        overflow="truncate",
        output=JsonObject(),
        parallel_tool_calls=False,
        logprobs=0,
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted(
    ("type", "role", "content", "text", "tools", "name", "parameters", "input", "output", *sum(NEEDED.values(), ()))
)
WORDS = st.sampled_from(
    (*NEEDED, "user", "assistant", "function", "custom", "namespace", "input_text", "allowed_tools", "x")
)
OBJECTS = st.recursive(
    WORDS | JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ResponseBody.model_fields)), OBJECTS, max_size=4), OBJECTS)
def test_any_body_is_taken_or_refused(body: dict[str, Any], given: Any) -> None:
    """Whatever is in it, nothing breaks."""
    with contextlib.suppress(HttpProblem):
        request({"input": given} | body)
