"""The fields of OpenAI's bodies: what is taken, and how what is not is refused."""

from __future__ import annotations

from typing import Any

import pytest

from api.body import check
from api.errors import HttpProblem
from api.openai.refusals import REFUSED, REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS
from api.openai.schemas import ChatCompletionBody, CompletionBody
from api.openai.translate import chat, completions
from api.settings import ApiSettings
from tasks.requests import CompletionRequest, Message, SamplingOptions
from tests.api.openai.bodies import USER, chat_request, refusal
from tests.api.site import Site


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 1.1),
        ("top_k", 1.5),
        ("top_k", -2),
        ("top_k", True),
        ("min_p", -1),
        ("typical_p", 2),
        ("repeat_penalty", 0),
        ("repetition_penalty", "1"),
        ("repeat_last_n", -2),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("mirostat", 3),
        ("mirostat_tau", -1),
        ("mirostat_eta", 2),
        ("seed", "1"),
        ("seed", 2**63),
        ("n", 0),
        ("n", 9),
        ("n", True),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_completion_tokens", 0),
        ("stop", 3),
        ("stop", ["a", 3]),
        ("stop", ["a"] * 5),
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", []),
        ("logit_bias", []),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": True}),
        ("logit_bias", {"-1": 1}),
        ("ignore_eos", "yes"),
        ("model", 3),
        ("model", "x" * 600),
        ("messages", []),
        ("messages", "Hi"),
        ("messages", {}),
        ("messages", [USER] * 2049),
        ("reasoning_effort", "much"),
        ("think", "yes"),
        ("chat_template_kwargs", []),
        ("chat_template_kwargs", {"a": [[[[[[[[[[1]]]]]]]]]]}),
        ("chat_template_kwargs", {"a": [0] * 2000}),
        ("chat_template_kwargs", {"a": 2**64}),
        ("service_tier", 1),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(field: str, value: Any) -> None:
    """Type or range: the error's `param` is the field."""
    param, code = refusal(ChatCompletionBody, {"messages": [USER], field: value})
    assert param == field
    assert code in ("invalid_type", "invalid_value")


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([1], "messages.0", "invalid_type"),
        ([{}], "messages.0.role", "missing_required_parameter"),
        ([USER, {"content": "x"}], "messages.1.role", "missing_required_parameter"),
        ([{"role": "robot", "content": "x"}], "messages.0.role", "invalid_value"),
        ([{"role": "user"}], "messages.0.content", "missing_required_parameter"),
        ([{"role": "user", "content": 3}], "messages.0.content", "invalid_type"),
        ([{"role": "user", "content": {"text": "x"}}], "messages.0.content", "invalid_type"),
        ([{"role": "user", "content": ["x"]}], "messages.0.content.0", "invalid_type"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages.0.content.0.type", "missing_required_parameter"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0", "invalid_value"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "messages.0.content.0.text", "invalid_type"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}],
                }
            ],
            "messages.0.content.1",
            "unsupported_content",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages.0.content.0", "unsupported_content"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "messages.0.tool_calls.0.function",
            "missing_required_parameter",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {}}]}],
            "messages.0.tool_calls.0.type",
            "unsupported_parameter",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": 3}}]}],
            "messages.0.tool_calls.0.function.arguments",
            "invalid_value",
        ),
        (
            [USER | {"tool_calls": [{"id": "1", "function": {"name": "f"}}]}],
            "messages.0.tool_calls",
            "invalid_value",
        ),
        ([USER | {"audio": {"id": "x"}}], "messages.0.audio", "unsupported_parameter"),
        ([{"role": "user", "content": "x", "name": 3}], "messages.0.name", "invalid_type"),
    ],
)
def test_a_wrong_message_is_named_by_its_path(messages: list[Any], param: str, code: str) -> None:
    """The path goes down to the part at fault, without the names of anything that is ours."""
    assert refusal(ChatCompletionBody, {"messages": messages}) == (param, code)


@pytest.mark.parametrize("shape", [ChatCompletionBody, CompletionBody])
def test_what_a_body_must_have_is_missed_by_name(shape: Any) -> None:
    """There is no default for what to answer."""
    required = "messages" if shape is ChatCompletionBody else "prompt"
    assert refusal(shape, {"model": "tiny"}) == (required, "missing_required_parameter")


ASKING: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "web_search_options": {},
    "logprobs": True,
    "top_logprobs": 3,
    "thinking_budget_tokens": 100,
    "add_generation_prompt": False,
    "best_of": 3,
}


@pytest.mark.parametrize("field", sorted({*REFUSED, *REFUSED_IN_CHAT}))
def test_what_chat_cannot_do_is_refused_by_name(field: str) -> None:
    """An option that would change the answer is never accepted and forgotten."""
    assert refusal(ChatCompletionBody, {"messages": [USER], field: ASKING.get(field, "something")}) == (
        field,
        "unsupported_parameter",
    )


@pytest.mark.parametrize("field", sorted({*REFUSED, *REFUSED_IN_COMPLETIONS}))
def test_what_completions_cannot_do_is_refused_by_name(field: str) -> None:
    """Nor here."""
    assert refusal(CompletionBody, {"prompt": "x", field: ASKING.get(field, "something")}) == (
        field,
        "unsupported_parameter",
    )


@pytest.mark.parametrize(("sent", "wish"), [(0, 0), (3, 3), (True, 0), (False, None), (None, None)])
def test_logprobs_of_a_completion(sent: object, wish: int | None) -> None:
    """Zero asks for the probability of each chosen token; some clients send what chats take."""
    assert (
        completions.to_request(check({"prompt": "x", "logprobs": sent}, CompletionBody, ApiSettings())).logprobs == wish
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"n": 3, "best_of": 2}, "invalid_value"), ({"best_of": 2, "stream": True}, "unsupported_parameter")],
)
def test_a_best_that_cannot_be_told(fields: dict[str, Any], code: str) -> None:
    """Of fewer answers than are wanted, or before the last is made."""
    assert refusal(CompletionBody, {"prompt": "x", **fields}) == ("best_of", code)


@pytest.mark.parametrize(
    ("fields", "wish"),
    [
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 5}, 5),
        ({"logprobs": False}, None),
        ({"top_logprobs": 0}, None),
    ],
)
def test_logprobs_of_a_chat(fields: dict[str, Any], wish: int | None) -> None:
    """Two fields there."""
    body = check({"messages": [USER], **fields}, ChatCompletionBody, ApiSettings())
    assert chat.to_request(body).logprobs == wish


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"top_logprobs": 0},
        {"modalities": ["text"]},
        {"functions": []},
        {"length_penalty": 1.0},
        {"top_n_sigma": -1.0},
        {"best_of": 1},
        {"tools": None, "audio": None, "logprobs": None},
        {"function_call": "none"},
        {"thinking_budget_tokens": -1},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": False, "prompt_cache_key": "x"},
    ],
)
def test_what_asks_for_nothing_is_taken(fields: dict[str, Any]) -> None:
    """Clients send the neutral value of fields they do not mean."""
    assert chat_request(**fields) == chat_request()


def test_every_sampling_field_arrives() -> None:
    """Under the shared vocabulary's name, with its value."""
    fields: dict[str, Any] = {
        "temperature": 0,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "typical_p": 0.95,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "mirostat": 2,
        "mirostat_tau": 5,
        "mirostat_eta": 0.1,
        "seed": 7,
        "ignore_eos": True,
    }
    request = chat_request(**fields, logit_bias={"5": -100, "6": 1.5})
    assert request.sampling == SamplingOptions(**fields, logit_bias={5: -100.0, 6: 1.5})
    assert set(fields) | {"logit_bias"} == set(SamplingOptions.__struct_fields__)


def test_the_clients_own_ways_to_say_the_same() -> None:
    """vLLM's name for the repeat penalty, -1 for no limit and no seed, integers written with a point."""
    assert chat_request(repetition_penalty=1.2).sampling.repeat_penalty == 1.2
    assert chat_request(top_k=-1).sampling.top_k == 0
    assert chat_request(seed=-1).sampling.seed is None
    assert chat_request(max_tokens=256.0).max_tokens == 256
    assert chat_request(logit_bias={}).sampling.logit_bias is None


def test_the_newer_limit_wins() -> None:
    """`max_completion_tokens` is the one that is meant; neither means until the model ends."""
    assert chat_request(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert chat_request(max_tokens=5).max_tokens == 5
    assert chat_request(max_tokens=10**15).max_tokens == 2**31 - 1
    assert chat_request().max_tokens is None


def test_stop_is_one_or_several() -> None:
    """A string, a list, or the empty string that means none."""
    assert chat_request(stop="x").stop == ("x",)
    assert chat_request(stop=["x", "y"]).stop == ("x", "y")
    assert chat_request(stop="").stop == chat_request(stop=[]).stop == ()


def test_messages_become_plain_text() -> None:
    """Roles fold into four, parts into one text, null into none."""
    request = chat_request(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}],
                "name": "Ann",
            },
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant"},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
            {"role": "function", "content": "43", "name": "f"},
            {"role": "user", "content": []},
        ]
    )
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "ab", "Ann"),
        Message("assistant", ""),
        Message("assistant", "no"),
        Message("assistant", ""),
        Message("tool", "42", tool_call_id="1"),
        Message("tool", "43", "f"),
        Message("user", ""),
    )


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning_effort": "minimal"}, {"enable_thinking": False}),
        ({"reasoning_effort": "high"}, {"enable_thinking": True, "reasoning_effort": "high"}),
        ({"reasoning": {"effort": "low"}}, {"enable_thinking": True, "reasoning_effort": "low"}),
        ({"think": False}, {"enable_thinking": False}),
        (
            {"think": True, "chat_template_kwargs": {"enable_thinking": False, "x": 1}},
            {"enable_thinking": False, "x": 1},
        ),
    ],
)
def test_how_much_to_think_is_told_to_the_template(fields: dict[str, Any], options: dict[str, Any]) -> None:
    """In whichever words; the template's own win."""
    assert chat_request(**fields).template_options == options


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", ("x",)),
        ("", ("",)),
        (["x", "y"], ("x", "y")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_prompt_has_four_shapes(prompt: Any, prompts: tuple[Any, ...]) -> None:
    """Text, texts, token ids, lists of token ids."""
    request = completions.to_request(check({"prompt": prompt}, CompletionBody, ApiSettings()))
    assert request == CompletionRequest(prompts=prompts, max_tokens=16)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ["x", 1]},
        {"prompt": [1, "x"]},
        {"prompt": [1, True]},
        {"prompt": [-1]},
        {"prompt": [1.5]},
        {"prompt": {}},
        {"prompt": 3},
        {"prompt": ["x"] * 129},
        {"prompt": ["x"] * 64, "n": 3},
    ],
)
def test_any_other_prompt_is_refused(fields: dict[str, Any]) -> None:
    """So are more answers than one request may ask for."""
    assert refusal(CompletionBody, fields) == ("prompt", "invalid_value")


def test_flex_goes_behind(place: Site) -> None:
    """`service_tier: flex` is work that nobody watches; the answer says that it was taken so."""
    reply = place.http.post("/v1/chat/completions", json={"messages": [USER], "service_tier": "flex"})
    assert place.relay.calls[-1].lane == "background"
    assert reply.json()["service_tier"] == "flex"
    place.http.post("/v1/chat/completions", json={"messages": [USER], "service_tier": "auto"})
    assert place.relay.calls[-1].lane == "interactive"


def test_a_request_without_a_model_asks_for_the_default(place: Site) -> None:
    """The relay settles which; the answer names it."""
    assert place.http.post("/v1/chat/completions", json={"messages": [USER]}).json()["model"] == "tiny"
    assert place.relay.calls[-1].model is None
    body = {"messages": [USER], "model": "org/tiny"}
    assert place.http.post("/v1/chat/completions", json=body).json()["model"] == "org/tiny"


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({}, None),
        ({"thinking_budget_tokens": 100}, 100),
        ({"thinking_budget_tokens": -1}, None),
        ({"reasoning": {"max_tokens": 50}}, 50),
        ({"reasoning": {"max_tokens": 50}, "thinking_budget_tokens": 0}, 0),
    ],
)
def test_a_budget_of_thought(fields: dict[str, Any], budget: int | None) -> None:
    """In either place."""
    assert chat_request(**fields).thinking_budget == budget


BEGUN = {"role": "assistant", "content": "Once"}


def test_a_last_message_is_gone_on_with() -> None:
    """With either of vLLM's two fields said or not."""
    for fields in ({}, {"add_generation_prompt": False}):
        body = {"messages": [USER, BEGUN], "continue_final_message": True, **fields}
        assert chat.to_request(check(body, ChatCompletionBody, ApiSettings())).continue_last
    body = {"messages": [USER, BEGUN], "continue_final_message": False, "add_generation_prompt": True}
    assert not chat.to_request(check(body, ChatCompletionBody, ApiSettings())).continue_last


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"add_generation_prompt": True}, ("add_generation_prompt", "invalid_value")),
        ({"messages": [USER]}, ("continue_final_message", "invalid_value")),
        (
            {"messages": [USER, BEGUN | {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}]},
            ("continue_final_message", "invalid_value"),
        ),
        ({"continue_final_message": False, "add_generation_prompt": False}, ("add_generation_prompt", "unsupported_parameter")),
    ],
)  # fmt: skip
def test_a_beginning_that_cannot_be_gone_on_with(fields: dict[str, Any], expected: tuple[str, str]) -> None:
    """By the field at fault."""
    body = {"messages": [USER, BEGUN], "continue_final_message": True, **fields}
    assert refusal(ChatCompletionBody, body) == expected


def test_the_right_name_is_told() -> None:
    """Of a field that another dialect has."""
    with pytest.raises(HttpProblem, match="'max_completion_tokens'"):
        check({"messages": [USER], "max_output_tokens": 5}, ChatCompletionBody, ApiSettings())
    assert check({"messages": [USER], "n_predict": -1}, ChatCompletionBody, ApiSettings()).n == 1
