"""What an answer is held to, as bodies of OpenAI say it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.body import check
from api.openai.schemas import ChatCompletionBody, CompletionBody
from api.openai.translate import chat, completions
from api.settings import ApiSettings
from tasks.requests import Grammar, JsonObject, JsonSchema, Regex
from tests.api.openai.bodies import USER, refusal

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonObject()),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JsonSchema(SCHEMA)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            JsonSchema(SCHEMA),
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, JsonSchema({})),
        ({"json_schema": SCHEMA}, JsonSchema(SCHEMA)),
        ({"json_schema": {}}, None),
        ({"grammar": 'root ::= "a"'}, Grammar('root ::= "a"', "gbnf")),
        ({"grammar": ""}, None),
        ({"guided_json": SCHEMA}, JsonSchema(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, JsonSchema(SCHEMA)),
        ({"guided_regex": "[a-z]+"}, Regex("[a-z]+")),
        ({"guided_choice": ["a.b", "c|d"]}, Regex(r"a\.b|c\|d")),
        ({"guided_choice": []}, None),
        ({"guided_grammar": 'start: "a"'}, Grammar('start: "a"', "lark")),
        ({"guided_grammar": 'root ::= "a"'}, Grammar('root ::= "a"', "gbnf")),
        ({"structured_outputs": {"json": SCHEMA}}, JsonSchema(SCHEMA)),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Regex("a|b")),
        ({"structured_outputs": {"json_object": True}}, JsonObject()),
        ({"structured_outputs": {}}, None),
    ],
    ids=str,
)
def test_what_the_answer_is_held_to(fields: dict[str, Any], output: object) -> None:
    """In OpenAI's words, llama.cpp's and vLLM's, of chats and of plain completions."""
    body = check({"messages": [USER], **fields}, ChatCompletionBody, ApiSettings())
    assert chat.to_request(body).output == output
    assert completions.to_request(check({"prompt": "x", **fields}, CompletionBody, ApiSettings())).output == output


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"guided_json": "{"}, "guided_json"),
        ({"json_schema": {"const": 2**70}}, "json_schema"),
        ({"guided_choice": [""]}, "guided_choice.0"),
        ({"grammar": 'root ::= "a"', "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"logprobs": 2, "echo": True}, "logprobs"),
    ],
    ids=str,
)
def test_a_format_that_says_nothing_or_two_things(fields: dict[str, Any], param: str) -> None:
    """Is refused, and where it stands is told."""
    assert refusal(CompletionBody, {"prompt": "x", **fields})[0] == param
