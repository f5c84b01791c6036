"""The fields of Anthropic's bodies: what is taken, and how what is not is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api.anthropic.refusals import REFUSED
from api.anthropic.schemas import MessagesBody
from api.anthropic.translate.prompt import to_request
from api.body import check
from api.errors import HttpProblem
from api.settings import ApiSettings
from tasks.requests import ChatRequest, JsonSchema, Message, SamplingOptions, Tool, ToolCall, ToolChoice
from tests.api.site import Site

USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "t", "input_schema": {"type": "object"}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {}}


def request(**fields: Any) -> ChatRequest:
    """What a body with these fields asks for."""
    return to_request(check({"max_tokens": 5, "messages": [USER]} | fields, MessagesBody, ApiSettings()))


def turns(*said: dict[str, Any]) -> tuple[Message, ...]:
    """The conversation that these turns are."""
    return request(messages=list(said)).messages


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", None, "max_tokens"),
        ("temperature", 2.1, "temperature"),
        ("temperature", "1", "temperature"),
        ("top_p", 1.1, "top_p"),
        ("top_k", 1.5, "top_k"),
        ("stop_sequences", "x", "stop_sequences"),
        ("stop_sequences", ["x"] * 5, "stop_sequences"),
        ("stream", "true", "stream"),
        ("messages", [], "messages"),
        ("messages", [{"role": "tool", "content": "x"}], "messages.0.role"),
        ("messages", [{"role": "user", "content": 5}], "messages.0.content"),
        ("messages", [{"role": "user", "content": [{"type": "image"}]}], "messages.0.content.0"),
        ("messages", [{"role": "user", "content": [{"type": "document"}]}], "messages.0.content.0"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0"),
        ("messages", [{"role": "user", "content": [CALL]}], "messages.0"),
        ("messages", [USER, {"role": "assistant", "content": [CALL]}], "messages"),
        (
            "messages",
            [
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}],
                }
            ],
            "messages.0.content.0.content.0",
        ),
        ("system", [CALL], "system"),
        ("system", 5, "system"),
        ("tools", [{"input_schema": {}}], "tools.0.name"),
        ("tools", [{"type": "computer_20250124", "name": "computer"}], "tools"),
        ("tool_choice", {"type": "any"}, "tool_choice"),
        ("tool_choice", {"type": "tool", "name": "web_search"}, "tool_choice"),
        ("tool_choice", {"type": "tool"}, "tool_choice"),
        ("tool_choice", {"type": "sometimes"}, "tool_choice.type"),
        ("thinking", {"type": "enabled", "budget_tokens": 0}, "thinking.budget_tokens"),
        ("output_config", {"format": {"type": "xml"}}, "output_config.format.type"),
        ("mcp_servers", [{"name": "x"}], "mcp_servers"),
        ("container", "c", "container"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(field: str, value: Any, param: str) -> None:
    """With 400, before anything is queued."""
    with pytest.raises(HttpProblem) as caught:
        request(**{field: value})
    assert (caught.value.problem.status, caught.value.problem.param) == (400, param)


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_other_dialects_have_is_refused_by_name(field: str) -> None:
    """An option that would change the answer is never read over; one that asks for nothing is."""
    with pytest.raises(HttpProblem) as caught:
        request(**{field: "something"})
    assert caught.value.problem.param == field
    for neutral in REFUSED[field][0]:
        assert request(**{field: neutral}) == request()


def test_a_stop_sequence_without_its_list_is_told_what_is_missing() -> None:
    """In JSON's words, not Python's."""
    with pytest.raises(HttpProblem) as caught:
        request(stop_sequences="x")
    assert caught.value.problem.message == "Invalid 'stop_sequences': it should be a list."


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "x"}},
        {"service_tier": "auto"},
        {"context_management": {"edits": []}},
        {"cache_control": {"type": "ephemeral"}},
        {"inference_geo": "eu"},
        {"mcp_servers": []},
        {"container": None},
        {"tools": []},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tool_choice": {"type": "auto"}},
        {"stop_sequences": [""]},
        {"thinking": {"type": "disabled"}},
        {"system": ""},
        {"future": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_asks_for_nothing_changes_nothing(fields: dict[str, Any]) -> None:
    """Nor do fields that belong to Anthropic's own service."""
    assert request(**fields) == request()


def test_sampling_and_limits() -> None:
    """Each field has its place."""
    asked = request(temperature=0.5, top_p=0.9, top_k=-1, max_tokens=2**40, stop_sequences=["a", "", "b"])
    assert asked.sampling == SamplingOptions(temperature=0.5, top_p=0.9, top_k=0)
    assert (asked.max_tokens, asked.stop) == (2**31 - 1, ("a", "b"))


def test_a_conversation() -> None:
    """The system prompt stands first; results of tools are turns of their own, in their order, before what follows them."""
    assert request(system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]).messages[0] == Message(
        "system", "a\nb"
    )
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "4", "is_error": True}
    foreign = {"type": "tool_result", "tool_use_id": "other"}
    said = turns(
        USER,
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, CALL]},
        {
            "role": "user",
            "content": [result, foreign, {"type": "text", "text": "So?"}, {"type": "text", "text": "Say."}],
        },
    )
    assert said == (
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=(ToolCall("1", "t", "{}"),)),
        Message("tool", "Error: 4", name="t", tool_call_id="1"),
        Message("tool", "", tool_call_id="other"),
        Message("user", "So?\nSay."),
    )


def test_turns_of_one_role_are_one_turn() -> None:
    """As the dialect means them; what the model said is joined without anything between."""
    answer = {"role": "assistant", "content": "Once "}
    assert turns(USER, USER, answer, answer, USER) == (
        Message("user", "Hi\nHi"),
        Message("assistant", "Once Once "),
        Message("user", "Hi"),
    )


def test_a_turn_of_the_system_in_mid_conversation_is_the_users() -> None:
    """Templates refuse it elsewhere; at the beginning it belongs to the system prompt."""
    system = {"role": "system", "content": "Be brief."}
    assert request(system="a", messages=[system, USER, system, USER]).messages == (
        Message("system", "a\nBe brief."),
        Message("user", "Hi\nBe brief.\nHi"),
    )
    assert turns(system, USER)[0] == Message("system", "Be brief.")


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    """Only where it stands last."""
    begun = {"role": "assistant", "content": "{"}
    assert request(messages=[USER, begun]).continue_last
    assert not request(messages=[USER, begun, USER]).continue_last


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "tool", "name": "t"}, ToolChoice("required", ("t",))),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_a_choice_of_tools(said: dict[str, Any], meant: ToolChoice) -> None:
    """Each kind, with one call at a time where that is asked for."""
    asked = request(tools=[TOOL | {"strict": True}], tool_choice=said | {"disable_parallel_tool_use": True})
    assert asked.tools == (Tool("t", "", {"type": "object"}, True),)
    assert (asked.tool_choice, asked.parallel_tool_calls) == (meant, False)


def test_an_output_that_fits_a_schema() -> None:
    """Under the field's present and its former name."""
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    for fields in ({"output_config": {"format": wanted}}, {"output_format": wanted}):
        assert request(**fields).output == JsonSchema({"type": "object"})


@pytest.mark.parametrize(
    ("fields", "options", "budget"),
    [
        ({}, {"enable_thinking": False}, None),
        ({"output_config": {"effort": "low"}}, {"enable_thinking": False}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, {"enable_thinking": True}, 2048),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
            {"enable_thinking": True, "reasoning_effort": "low"},
            None,
        ),
    ],
)
def test_a_model_thinks_where_it_is_told_to(
    fields: dict[str, Any], options: dict[str, Any], budget: int | None
) -> None:
    """And nowhere else, in this dialect."""
    asked = request(**fields)
    assert (asked.template_options, asked.thinking_budget) == (options, budget)


def test_what_a_coding_agent_sends_is_read_whole(place: Site) -> None:
    """Of the recorded exchange: prompts in pieces, tools, thoughts, results, and reminders behind them."""
    path = Path(__file__).parent / "golden" / "claude_code.json"
    exchange = json.loads(path.read_text(encoding="utf-8"))["request"]
    place.http.post(exchange["path"], json=exchange["body"], headers=exchange["headers"])
    asked = place.relay.calls[-1].request
    assert isinstance(asked, ChatRequest)
    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "tool", "user"]
    assert "billing" in exchange["body"]["system"][0]["text"]  # it is not for the model
    assert asked.messages[0].content.startswith("You are a coding agent.\n# Tools\n")
    assert asked.messages[2].reasoning == "I should read it."
    assert asked.messages[3] == Message("tool", "1\tHello", name="Read", tool_call_id="call_a")
    assert [tool.name for tool in asked.tools] == ["Read", "Bash"]
    assert (asked.thinking_budget, asked.max_tokens) == (31999, 32000)
    assert not place.relay.calls[-1].model  # the default model stands for Anthropic's own


@pytest.mark.parametrize("setting", ["tiny", None])
def test_a_model_of_anthropics_own_is_the_one_that_the_settings_name(
    place: Site, setting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another name that is not there stays unknown, and one that is there is itself."""
    settings = place.app.state.settings.now.model_copy(update={"claude_model": setting})
    monkeypatch.setattr(place.app.state.settings, "now", settings)
    own = setting or ""  # no name is the default model's
    meant_by = {"claude-opus-9": own, "Claude-haiku@background": f"{own}@background", "tiny": "tiny", "gpt-9": "gpt-9"}
    for asked, meant in meant_by.items():
        place.http.post("/v1/messages", json={"model": asked, "max_tokens": 5, "messages": [USER]})
        assert place.relay.calls[-1].model == meant
