"""Ollama bodies, and what is made of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.body import check
from api.errors import HttpProblem
from api.keep_alive import seconds
from api.ollama.refusals import REFUSED
from api.ollama.schemas import ChatBody, EmbedBody, GenerateBody
from api.ollama.translate import chat, context, generate
from tasks.requests import JsonObject, JsonSchema

CALL = {"function": {"name": "f"}}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def refusal(shape: type, body: dict[str, Any]) -> str:
    """What is said of a body that is wrong."""
    with pytest.raises(HttpProblem) as caught:
        check(body, shape)
    assert caught.value.problem.status == 400
    return caught.value.problem.message


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (0, 0.0),
        (90, 90.0),
        (0.5, 0.5),
        (-1, -1.0),
        ("0", 0.0),
        ("300ms", 0.3),
        ("1.5h", 5400.0),
        ("2h45m", 9900.0),
        ("-1m", -1.0),
        ("5m0s", 300.0),
        ("250us", 0.00025),
        ("10µs", 0.00001),
        (10**400, -1.0),
        (1e300, -1.0),
        ("9" * 90 + "h", -1.0),
        ("999999h", 3599996400.0),
    ],
)
def test_how_long_a_model_stays(value: Any, meant: float) -> None:
    """A number of seconds, or a duration as Go writes it."""
    assert seconds(value) == pytest.approx(meant)


@pytest.mark.parametrize("value", ["", "soon", "5", "5 m", "m", True, [], "1h-5m", float("nan"), "5mm", "1.2.3s"])
def test_what_is_no_time_is_refused(value: Any) -> None:
    """By name."""
    assert "keep_alive" in refusal(ChatBody, CHAT | {"keep_alive": value})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_ctx": "4096"}, 'option "num_ctx" must be of type integer'),
        ({"top_k": 1.5}, 'option "top_k" must be of type integer'),
        ({"seed": True}, 'option "seed" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"stop": 3}, 'option "stop" must be of type array of strings'),
        ({"stop": ["a", 3]}, 'option "stop" must be of type array of strings'),
        ({"top_p": 3}, 'option "top_p" must be between 0 and 1'),
    ],
)
def test_a_wrong_option_is_refused_in_ollamas_words(options: dict[str, Any], says: str) -> None:
    """Its clients know them."""
    assert refusal(ChatBody, CHAT | {"options": options}) == says


def test_options_that_mean_nothing_are_ignored() -> None:
    """As Ollama does with those it does not know."""
    body = check(CHAT | {"options": {"num_gpu": 99, "use_mmap": None, "no_such": [], "temperature": None}}, ChatBody)
    assert body.options.temperature is None


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("format", "yaml", 'invalid format: "yaml"; expected "json" or a valid JSON Schema object'),
        ("format", 3, 'invalid format: "int"; expected "json" or a valid JSON Schema object'),
        ("think", "very", "invalid think value: 'very'"),
        ("top_logprobs", 21, "top_logprobs must be between 0 and 20"),
        ("model", "", "model is required"),
        ("messages", "Hi", "Invalid 'messages': it should be a list."),
        ("messages", [{"role": "poet", "content": ""}], "Invalid 'messages.0.role'"),
        ("messages", [{"role": "user", "content": ["Hi"]}], "Invalid 'messages.0.content': it should be a string."),
        ("messages", [{"role": "assistant", "tool_calls": [CALL] * 513}], "Invalid 'messages.0.tool_calls'"),
    ],
)
def test_what_is_wrong_is_named(field: str, value: Any, says: str) -> None:
    """In Ollama's words where it has some."""
    assert says in refusal(ChatBody, CHAT | {field: value})


def test_limits_reach_the_request() -> None:
    """A ceiling for the context, a limit of tokens, and what is done with too long a prompt."""
    request = chat.to_request(check(CHAT | {"options": {"num_ctx": 512, "num_predict": 9}}, ChatBody))
    assert (request.context_limit, request.max_tokens, request.overflow) == (512, 9, "truncate")
    request = chat.to_request(check(CHAT | {"truncate": False, "options": {"num_predict": -1}}, ChatBody))
    assert (request.context_limit, request.max_tokens, request.overflow) == (None, None, "refuse")


@pytest.mark.parametrize(
    ("wish", "meant"),
    [(None, None), ("", None), ({}, None), ("json", JsonObject()), ({"type": "array"}, JsonSchema({"type": "array"}))],
)
def test_a_format_is_what_the_answer_is_held_to(wish: Any, meant: Any) -> None:
    """None where none is asked for."""
    assert chat.to_request(check(CHAT | {"format": wish}, ChatBody)).output == meant


@pytest.mark.parametrize(
    ("think", "options"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
    ],
)
def test_thinking_is_told_to_the_template(think: Any, options: dict[str, Any]) -> None:
    """Left to the model where nothing is said."""
    assert chat.to_request(check(CHAT | {"think": think}, ChatBody)).template_options == options


@pytest.mark.parametrize("value", [3, {"a": 1}, ["a", 3]])
def test_what_is_no_text_is_not_embedded(value: Any) -> None:
    """In Ollama's words."""
    assert refusal(EmbedBody, {"model": "m", "input": value}) == "invalid input type"


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=5))
def test_a_context_is_what_was_said(turns: list[tuple[Any, str]]) -> None:
    """Whatever it was."""
    assert list(context.decode(context.encode(turns))) == turns


@given(st.lists(st.integers(-5, 2**40), max_size=20))
def test_a_context_that_is_none_is_refused(numbers: list[int]) -> None:
    """Numbers of another server, or made up."""
    for made in ([1, *numbers], [context.MARK, 10, 10, *numbers], [context.MARK, *map(abs, numbers), -1]):
        with pytest.raises(HttpProblem, match="was not made by this server"):
            context.decode(made)


def test_a_new_system_prompt_stands_for_the_old_one() -> None:
    """There is one in a conversation."""
    before = context.encode([("system", "old"), ("user", "a"), ("assistant", "b")])
    body = check({"model": "m", "prompt": "c", "system": "new", "context": before}, GenerateBody)
    assert generate.turns(body) == (("system", "new"), ("user", "a"), ("assistant", "b"), ("user", "c"))


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_stands_beside_the_options_is_refused_by_name(field: str) -> None:
    """Ollama reads over it; whoever sent it would not get what was asked for."""
    said = refusal(ChatBody, {"model": "m", field: "something"})
    assert field in said
    assert "not supported here" in said
    assert refusal(GenerateBody, {"model": "m", field: "something"}) == said
