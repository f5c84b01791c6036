"""Arguments that are not written as JSON: what an answer is held to is what is read, and fits the tool's schema."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from npu.answer_format import ToolFormat
from npu.constraint import Constraint, JsonSchema
from npu.engines.echo import EchoTokenizer, EchoWords
from npu.errors import FieldRefused
from npu.matcher import Matcher, Matchers
from tasks.events import fold
from tasks.prompting.holding import constraint_of
from tasks.prompting.reading import Reading
from tasks.requests import ChatRequest, JsonObject, Message, Tool, ToolChoice
from tasks.worker.parsing.answer import answer_parser

FORMATS = (ToolFormat.XML, ToolFormat.GLM, ToolFormat.GEMMA, ToolFormat.GEMMA4)
MATCHERS = Matchers(EchoWords(), EchoTokenizer())
ENDS = {
    ToolFormat.XML: "\n</parameter>",
    ToolFormat.GLM: "</arg_value>",
    ToolFormat.GEMMA: "<escape>",
    ToolFormat.GEMMA4: '<|"|>',
}

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 12},
        "exact": {"type": "boolean"},
        "kind": {"$ref": "#/$defs/kind"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "place": {"$ref": "#/$defs/place"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        "unit": {"enum": ["C", "F", "C or F"]},
    },
    "required": ["days", "city"],
    "additionalProperties": False,
    "$defs": {
        "kind": {"enum": ["now", 5, None]},
        "place": {
            "type": "object",
            "properties": {"kind": {"$ref": "#/$defs/kind"}, "lat": {"type": "integer"}},
            "required": ["lat"],
            "additionalProperties": False,
        },
    },
}


def held(form: ToolFormat, *tools: Tool, required: bool = True, **request: Any) -> Constraint:
    chat = ChatRequest(
        "m", (Message("user", "x"),), tools=tools, tool_choice=ToolChoice("required" if required else "auto"), **request
    )
    made = constraint_of(chat, Reading(calls=form, tools=tools, most_calls=1), "")
    assert made is not None
    return made


def fits(schema: dict[str, Any], arguments: str) -> bool:
    """Whether they are JSON that fits; a schema's names stand in alphabetical order here, as they do in what is compared."""
    matcher = MATCHERS.match(Constraint(JsonSchema(schema)))
    written = json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=False).replace("\x7f", "\\u007f")
    return all(map(matcher.accept, written.encode())) and matcher.may_end


def said(constraint: Constraint, end: str, chance: random.Random, begun: Matcher | None = None) -> str:
    """An answer as a model might give it that knows nothing but what may come next, and how a text ends."""
    matcher = begun or MATCHERS.match(constraint)
    text, ending = bytearray(), b""
    while not matcher.is_complete and len(text) < 4000:
        allowed = [int(byte) for byte in matcher.allowed()[:127].nonzero()[0] if byte == 10 or byte >= 32]
        if len(allowed) > 60 and not ending and chance.random() < 0.3:
            ending = end.encode()
        if ending and ending[0] in allowed:
            byte, ending = ending[0], ending[1:]
        else:
            byte, ending = chance.choice(allowed), b""
        assert matcher.accept(byte)
        text.append(byte)
    return text.decode()


@pytest.mark.parametrize("form", FORMATS)
def test_what_must_be_called_is_read_and_fits(form: ToolFormat) -> None:
    """Whatever a model says that is held to it."""
    tool = Tool("weather", parameters=SCHEMA, strict=True)
    constraint = held(form, tool)
    for seed in range(12):
        text = said(constraint, ENDS[form], random.Random(seed))
        choice = read(form, tool, text)
        assert choice.text == "", text
        [call] = choice.tool_calls
        assert call.name == "weather"
        assert fits(SCHEMA, call.arguments)


def read(form: ToolFormat, tool: Tool, text: str, **reading: Any) -> Any:
    parser = answer_parser("job", 0, (), Reading(calls=form, tools=(tool,), **reading))
    return fold([*parser.feed(0, text.encode()), *parser.finish()]).choice(0)


@pytest.mark.parametrize("form", FORMATS)
def test_who_may_call_without_a_schema_says_any_arguments(form: ToolFormat) -> None:
    """Beside a format of the answer, a call is well-formed, whatever is in it."""
    tool = Tool("weather", parameters=SCHEMA)
    constraint = held(form, tool, required=False, output=JsonObject())
    matcher = MATCHERS.match(constraint)
    assert all(map(matcher.accept, b'{"a": 1}'))
    assert matcher.may_end
    begin = {
        ToolFormat.XML: "<tool_call>\n",
        ToolFormat.GLM: "<tool_call>",
        ToolFormat.GEMMA: "<start",
        ToolFormat.GEMMA4: "<|t",
    }
    for seed in range(4):
        matcher = MATCHERS.match(constraint, begin[form].encode())
        text = begin[form] + said(constraint, ENDS[form], random.Random(seed), matcher)
        if matcher.may_end:
            assert [call.name for call in read(form, tool, text, alone=True).tool_calls] == ["weather"]
            json.loads(read(form, tool, text, alone=True).tool_calls[0].arguments)


XML = """\
<tool_call>
<function=weather>
<parameter=city>
Ulm
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""
GLM = """\
<tool_call>weather
<arg_key>city</arg_key>
<arg_value>Ulm</arg_value>
<arg_key>days</arg_key>
<arg_value>3</arg_value>
</tool_call>"""
SAME = {
    ToolFormat.XML: XML,
    ToolFormat.GLM: GLM,
    ToolFormat.GEMMA: "<start_function_call>call:weather{city:<escape>Ulm<escape>,days:3}<end_function_call>",
    ToolFormat.GEMMA4: '<|tool_call>call:weather{city:<|"|>Ulm<|"|>,days:3}<tool_call|>',
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("required", [True, False])
def test_a_call_is_held_to_as_its_models_write_it(form: ToolFormat, required: bool) -> None:
    """Word by word; what its schema does not allow cannot be said."""
    constraint = held(form, Tool("weather", parameters=SCHEMA, strict=True), required=required)
    matcher = MATCHERS.match(constraint)
    assert all(map(matcher.accept, SAME[form].encode()))
    assert matcher.may_end
    for wrong in (
        SAME[form].replace("3", "13"),
        SAME[form].replace("city", "town"),
        SAME[form].replace("days", "dais"),
    ):
        matcher = MATCHERS.match(constraint)
        assert not all(map(matcher.accept, wrong.encode()))


def test_a_model_of_gemma_may_begin_what_its_call_will_bring() -> None:
    """As it was taught to, instead of an end; nothing of that is read."""
    tool = Tool("weather", parameters=SCHEMA)
    chat = ChatRequest("m", (Message("user", "x"),), tools=(tool,), tool_choice=ToolChoice("required"))
    constraint = constraint_of(chat, Reading(calls=ToolFormat.GEMMA, tools=(tool,)), "")
    assert constraint is not None
    matcher = MATCHERS.match(constraint)
    assert all(map(matcher.accept, (SAME[ToolFormat.GEMMA] + "<start_function_response>").encode()))
    assert matcher.is_complete


def test_calls_without_the_outer_marks_are_held_to_their_schema_as_well() -> None:
    """Some models of XML leave them out, and are understood."""
    inner = XML.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    constraint = held(ToolFormat.XML, Tool("weather", parameters=SCHEMA, strict=True), required=False)
    assert all(map(MATCHERS.match(constraint).accept, f"So: {inner}".encode()))
    assert not all(map(MATCHERS.match(constraint).accept, f"So: {inner}".replace("3", "13").encode()))


def endless() -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"$ref": "#"}}}


@pytest.mark.parametrize(
    ("form", "schema", "words"),
    [
        (ToolFormat.XML, {"properties": {"a": {"type": "string", "pattern": "^a$"}}}, "'pattern'"),
        (ToolFormat.XML, {"properties": {"a": {"type": ["string", "object"]}}}, "look alike"),
        (ToolFormat.XML, {"properties": {"a>": {}}}, "'a>'"),
        (ToolFormat.XML, {"properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        (ToolFormat.GLM, {"properties": {}, "minProperties": 1}, "'minProperties'"),
        (ToolFormat.GEMMA, {"properties": {"a": {"type": "array", "uniqueItems": True}}}, "'uniqueItems'"),
        (ToolFormat.GEMMA, {"properties": {"a": {"enum": [[1]]}}}, "whole"),
        (ToolFormat.GEMMA4, endless(), "within itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_held_to_is_refused(form: ToolFormat, schema: dict[str, Any], words: str) -> None:
    """By name, where it was promised."""
    with pytest.raises(FieldRefused, match=words) as refused:
        held(form, Tool("weather", parameters=schema, strict=True))
    assert refused.value.field in ("strict", "tool_choice")
