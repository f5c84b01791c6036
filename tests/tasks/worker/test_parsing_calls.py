"""Calls of tools told from text, in each format, however the text comes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npu.answer_format import ThinkingFormat, ToolFormat
from tasks.events import Choice, Event, fold
from tasks.prompting.reading import Reading
from tasks.requests import Tool
from tasks.worker.parsing.answer import answer_parser
from tasks.worker.parsing.calls import MOST_HELD

TOOLS = (
    Tool(
        "weather",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "where": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                "note": {"type": ["string", "null"]},
            },
        },
    ),
    Tool("time"),
)


def parse(form: ToolFormat | None, text: str, *, cuts: tuple[int, ...] = (), **reading: Any) -> Choice:
    """What a client reads of an answer that comes in these pieces; one byte at a time without any cuts."""
    return folded(events_of(form, text, cuts=cuts, **reading))


def folded(events: list[Event]) -> Choice:
    return fold(events).choice(0)


def events_of(
    form: ToolFormat | None, text: str, *, cuts: tuple[int, ...] = (), stop: tuple[str, ...] = (), **reading: Any
) -> list[Event]:
    data = text.encode()
    ends = sorted({end for end in (cuts or range(len(data))) if 0 < end < len(data)} | {len(data)})
    parser = answer_parser("job", 0, stop, Reading(calls=form, tools=TOOLS, **reading))
    events: list[Event] = []
    for start, end in zip([0, *ends], ends, strict=False):
        if not parser.stopped:
            events += parser.feed(0, data[start:end])
    return [*events, *parser.finish()]


def calls_of(choice: Choice) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in choice.tool_calls]


PARIS = {"city": "Paris", "days": 3}
OBJECT = '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}'
TIME = '{"name": "time", "arguments": {}}'

XML = """\
<tool_call>
<function=weather>
<parameter=city>
Paris
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""
GLM = """\
<tool_call>weather
<arg_key>city</arg_key>
<arg_value>Paris</arg_value>
<arg_key>days</arg_key>
<arg_value>3</arg_value>
</tool_call>"""
GEMMA4 = '<|tool_call>call:weather{city:<|"|>Paris<|"|>,<|"|>days<|"|>:3}<tool_call|>'
GEMMA = "<start_function_call>call:weather{city:<escape>Paris<escape>,days:3}<end_function_call>"
BEGIN, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
V3 = f'{BEGIN}function{SEP}weather\n```json\n{{"city": "Paris", "days": 3}}\n```{END}'
V31 = f'{BEGIN}weather{SEP}{{"city": "Paris", "days": 3}}{END}'

ONE: dict[str, tuple[ToolFormat, str]] = {
    "hermes": (ToolFormat.HERMES, f"<tool_call>\n{OBJECT}\n</tool_call>"),
    "hermes-arguments-first": (
        ToolFormat.HERMES,
        '<tool_call>{"arguments": {"city": "Paris", "days": 3}, "id": [1, "}"], "name": "weather"}</tool_call>',
    ),
    "hermes-arguments-as-text": (
        ToolFormat.HERMES,
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}</tool_call>',
    ),
    "hermes-without-an-end": (ToolFormat.HERMES, f"<tool_call>{OBJECT}"),
    "xml": (ToolFormat.XML, XML),
    "xml-bare": (
        ToolFormat.XML,
        "<function=weather><parameter=city>Paris</parameter><parameter=days>3</parameter></function>",
    ),
    "glm": (ToolFormat.GLM, GLM),
    "glm-on-one-line": (ToolFormat.GLM, GLM.replace("\n", "")),
    "llama": (ToolFormat.LLAMA, '{"name": "weather", "parameters": {"city": "Paris", "days": 3}}'),
    "llama-tag": (
        ToolFormat.LLAMA,
        '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Paris", "days": 3}}',
    ),
    "mistral-list": (ToolFormat.MISTRAL, f"[TOOL_CALLS] [{OBJECT}]"),
    "mistral-name": (ToolFormat.MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 3}'),
    "mistral-id": (ToolFormat.MISTRAL, '[TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{"city": "Paris", "days": 3}'),
    "mistral-plain": (ToolFormat.MISTRAL, '[TOOL_CALLS]weather{"city": "Paris", "days": 3}'),
    "gemma": (ToolFormat.GEMMA, f"{GEMMA}<start_function_response>made up"),
    "gemma4": (ToolFormat.GEMMA4, f"{GEMMA4}<|tool_response>made up"),
    "deepseek-v3": (ToolFormat.DEEPSEEK, f"<｜tool▁calls▁begin｜>{V3}<｜tool▁calls▁end｜>"),
    "deepseek-v3.1": (ToolFormat.DEEPSEEK, f"<｜tool▁calls▁begin｜>{V31}<｜tool▁calls▁end｜>"),
    "json": (ToolFormat.JSON, OBJECT),
    "json-fenced": (ToolFormat.JSON, f"```json\n[{OBJECT}]\n```"),
}

TWO: dict[str, tuple[ToolFormat, str]] = {
    "hermes": (ToolFormat.HERMES, f"<tool_call>{OBJECT}</tool_call>\n<tool_call>{TIME}</tool_call>"),
    "xml": (ToolFormat.XML, f"{XML}\n<tool_call>\n<function=time>\n</function>\n</tool_call>"),
    "glm": (ToolFormat.GLM, f"{GLM}\n<tool_call>time\n</tool_call>"),
    "llama": (ToolFormat.LLAMA, f"{OBJECT}; {TIME}"),
    "mistral-list": (ToolFormat.MISTRAL, f"[TOOL_CALLS][{OBJECT}, {TIME}]"),
    "mistral-name": (ToolFormat.MISTRAL, ONE["mistral-name"][1] + "[TOOL_CALLS]time[ARGS]{}"),
    "gemma": (ToolFormat.GEMMA, f"{GEMMA}<start_function_call>call:time{{}}<end_function_call>"),
    "gemma4": (ToolFormat.GEMMA4, f"{GEMMA4}<|tool_call>call:time{{}}<tool_call|>"),
    "deepseek-v3": (
        ToolFormat.DEEPSEEK,
        f"<｜tool▁calls▁begin｜>{V3}\n{BEGIN}function{SEP}time\n```json\n{{}}\n```{END}<｜tool▁calls▁end｜>",
    ),
    "json": (ToolFormat.JSON, f"[{OBJECT},\n{TIME}]"),
}

MARKED = [name for name, (form, _) in ONE.items() if form not in (ToolFormat.LLAMA, ToolFormat.JSON)]


def test_every_format_is_tried() -> None:
    """A new one has its line in both tables."""
    assert {form for form, _ in ONE.values()} == {form for form, _ in TWO.values()} == set(ToolFormat)


@pytest.mark.parametrize("name", ONE)
def test_a_call_is_read(name: str) -> None:
    """Name and arguments, and nothing of how they are written remains as text."""
    form, text = ONE[name]
    choice = parse(form, text)
    assert calls_of(choice) == [("weather", PARIS)]
    assert choice.text == ""


@pytest.mark.parametrize("name", TWO)
def test_two_calls_are_read(name: str) -> None:
    """Each with an id of its own."""
    form, text = TWO[name]
    choice = parse(form, text)
    assert calls_of(choice) == [("weather", PARIS), ("time", {})]
    assert choice.text == ""
    assert len({call.id for call in choice.tool_calls}) == 2
    assert all(call.id.startswith("call_") for call in choice.tool_calls)


@pytest.mark.parametrize("name", TWO)
def test_one_call_where_one_is_allowed(name: str) -> None:
    """The answer ends behind it."""
    form, text = TWO[name]
    assert calls_of(parse(form, text, most_calls=1)) == [("weather", PARIS)]


@pytest.mark.parametrize("name", MARKED)
def test_text_around_a_call(name: str) -> None:
    """Blanks between the two belong to neither."""
    form, text = ONE[name]
    choice = parse(form, f"Let me see. \n\n{text}")
    assert (choice.text, calls_of(choice)) == ("Let me see.", [("weather", PARIS)])


@pytest.mark.parametrize("form", ToolFormat)
@pytest.mark.parametrize("text", ["  A < b, [TOOL] and {x}.\n\n", "<tool_", "{", "```", '{"city": "Paris"}', "{}", ""])
def test_text_is_text(form: ToolFormat, text: str) -> None:
    """Nothing is lost of what only looks like a call, not even a blank."""
    assert parse(form, text).text == text


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (ToolFormat.HERMES, "<tool_call>weather in Paris</tool_call>"),
        (ToolFormat.HERMES, '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        (ToolFormat.HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
        (ToolFormat.HERMES, '<tool_call>{"name": "we'),
        (ToolFormat.HERMES, '<tool_call>{"name": 3, "arguments": {}}'),
        (ToolFormat.HERMES, '<tool_call>{"name": "two words", "arguments": {}}'),
        (ToolFormat.HERMES, '<tool_call>{"arguments": {"days": 1e999}, "name": "weather"}</tool_call>'),
        (ToolFormat.XML, "<tool_call>\n<fun>weather</fun>"),
        (ToolFormat.XML, "Write <function= and then\na name"),
        (ToolFormat.MISTRAL, "[TOOL_CALLS] none"),
        (ToolFormat.GEMMA, "<start_function_call>weather"),
        (ToolFormat.DEEPSEEK, "<｜tool▁calls▁begin｜>weather"),
        (ToolFormat.LLAMA, '{"name": "Bob", "parameters": {}}'),
        (ToolFormat.LLAMA, '{"name": "weather", "age": 3}'[:-1]),
        (ToolFormat.JSON, '[{"name": "Bob", "arguments": {}}]'),
        (ToolFormat.JSON, '```json\n{"a": 1}\n```'),
        (ToolFormat.HERMES, "<tool_call>" + '{"a": ' * 5000),
    ],
)
def test_a_call_that_is_none_is_text(form: ToolFormat, text: str) -> None:
    """Word for word; and what is written behind it is read on."""
    assert parse(form, text).text == text
    if form not in (ToolFormat.LLAMA, ToolFormat.JSON):
        after = parse(
            form,
            f"{text} – {ONE[{ToolFormat.DEEPSEEK: 'deepseek-v3', ToolFormat.MISTRAL: 'mistral-name'}.get(form, form.value)][1]}",
        )
        assert after.text.startswith(text)


def test_a_second_call_that_is_none_is_text() -> None:
    """The first one stays."""
    choice = parse(ToolFormat.MISTRAL, f"[TOOL_CALLS][{OBJECT}, oops]")
    assert (calls_of(choice), choice.text) == ([("weather", PARIS)], ", oops]")


def test_a_name_that_is_no_tool_is_passed_on() -> None:
    """Where the model marked it as a call; its client knows what to say to that."""
    assert calls_of(parse(ToolFormat.HERMES, '<tool_call>{"name": "nope"}</tool_call>')) == [("nope", {})]


def test_arguments_that_are_cut_short_stay_as_they_are() -> None:
    """They were sent already."""
    for form, text in (
        (ToolFormat.HERMES, '<tool_call>{"name": "time", "arguments": {"a": "b'),
        (ToolFormat.XML, "<function=time><parameter=a>b"),
    ):
        [call] = parse(form, text).tool_calls
        assert (call.name, call.arguments) == ("time", '{"a": "b')


def test_what_is_held_back_is_bounded() -> None:
    """A call whose arguments do not begin for so long is text."""
    text = "<tool_call>{" + " " * (MOST_HELD + 1)
    events = events_of(ToolFormat.HERMES, text, cuts=(11, 100, MOST_HELD + 11, MOST_HELD + 12))
    assert folded(events).text == text
    assert len(events) > 1  # not only at the end


def test_markers_inside_each_other_are_not_read_for_ever() -> None:
    """Each may begin a call that goes on to the end of the answer, where all of them turn out to be text."""
    text = '<tool_call>{"a":[' * 3000
    begun = time.process_time()
    assert parse(ToolFormat.HERMES, text, cuts=(len(text),)).text == text
    assert time.process_time() - begun < 2


def test_name_and_arguments_come_as_they_are_said() -> None:
    """First the name, then the arguments in parts."""
    events = events_of(ToolFormat.HERMES, f"Hi <tool_call>{OBJECT}</tool_call>")
    kinds = [event.__struct_config__.tag for event in events]
    assert kinds[:2] == ["text", "text"]
    assert kinds[2] == "call"
    assert kinds[3:] == ["arguments"] * len('{"city": "Paris", "days": 3}')


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("days>7<", 7),
        ("days>soon<", "soon"),
        ("city>3<", "3"),
        ('where>{"a": [1]}<', {"a": [1]}),
        ("where>None<", None),
        ("note>null<", None),
        ("note>5<", "5"),
        ("other>5<", "5"),
        ('city>\n two\nlines "ü" </x>\n<', ' two\nlines "ü" </x>'),
        ("days>NaN<", "NaN"),
        ("other>-1e999<", "-1e999"),
        ("other>[1e999]<", "[1e999]"),
        ("days>" + "[" * 100_000 + "<", "[" * 100_000),
    ],
)
def test_parameters_are_what_the_schema_says(value: str, expected: object) -> None:
    """A text where it allows nothing else or says nothing; else JSON, and a text where it is none."""
    name = value.split(">")[0]
    text = f"<function=weather><parameter={value}/parameter></function>"
    length = len(text.encode())
    if length > MOST_HELD:
        [call] = parse(ToolFormat.XML, text, cuts=(length,)).tool_calls
        assert call.arguments == '{"days": '
        return
    assert calls_of(parse(ToolFormat.XML, text)) == [("weather", {name: expected})]


def test_what_gemma_writes_inside_arguments() -> None:
    """Texts between marks, lists, objects, and words without any."""
    text = '<start_function_call>call:f{a:[1,<escape>x, "y"}<escape>, {b:true}],c:{},d:[], e: word }<end_function_call>'
    assert calls_of(parse(ToolFormat.GEMMA, text)) == [
        ("f", {"a": [1, 'x, "y"}', {"b": True}], "c": {}, "d": [], "e": "word"})
    ]
    deep = "<start_function_call>call:f{a:" + "[" * 5000
    assert parse(ToolFormat.GEMMA, deep).text.endswith("[" * 4000)


def test_half_a_surrogate_pair_can_be_sent() -> None:
    """JSON can write what UTF-8 cannot."""
    text = '<tool_call>{"arguments": {"a": "\\ud800"}, "name": "time"}</tool_call>'
    [call] = parse(ToolFormat.HERMES, text).tool_calls
    assert call.arguments.encode() == b'{"a": "\\ud800"}'


def test_control_tokens_are_known_by_their_ids() -> None:
    """Engines give them without bytes."""
    parser = answer_parser(
        "job", 0, (), Reading(calls=ToolFormat.MISTRAL, tools=TOOLS, markers={9: b"[TOOL_CALLS]", 8: b"[ARGS]"})
    )
    events = [
        event
        for token, data in ((9, b""), (1, b"time"), (8, b""), (7, b""), (1, b"{}"))
        for event in parser.feed(token, data)
    ]
    assert calls_of(folded([*events, *parser.finish()])) == [("time", {})]


def test_stop_sequences_are_looked_for_in_the_text_alone() -> None:
    """Not in a thought, nor in arguments; and none reaches over a call."""
    call = '<tool_call>{"name": "time", "arguments": {"a": "STOP"}}</tool_call>'
    text = f"<think>a STOP b</think>c ST{call}OP d STOP e"
    choice = parse(ToolFormat.HERMES, text, stop=("STOP",), thinking=ThinkingFormat.THINK)
    assert (choice.reasoning, choice.text) == ("a STOP b", "c STOP d ")
    assert calls_of(choice) == [("time", {"a": "STOP"})]


@pytest.mark.parametrize("form", ThinkingFormat)
@pytest.mark.parametrize("begun", [False, True])
def test_a_thought_is_told_from_the_answer(form: ThinkingFormat, begun: bool) -> None:
    """Whether its mark was said or stands in the prompt; blanks around it belong to neither."""
    text = f"{'' if begun else form.opening}\nHm, {form.closing[:3]} so.\n{form.closing}\n\nYes: {form.opening}"
    choice = parse(None, text, thinking=form, thought_begun=begun)
    assert (choice.reasoning, choice.text) == (f"Hm, {form.closing[:3]} so.", f"Yes: {form.opening}")


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>on and on \n", "on and on", ""),
        ("<think></think>", "", ""),
        ("<think>\n\n</think>\n\nYes", "", "Yes"),
        ("  <thin", "", "  <thin"),
        ("No <think>x</think>", "", "No <think>x</think>"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("", "", ""),
    ],
)
def test_thoughts_at_their_edges(text: str, thought: str, answer: str) -> None:
    """What does not end is a thought to the end; what is none is text."""
    choice = parse(None, text, thinking=ThinkingFormat.THINK)
    assert (choice.reasoning, choice.text) == (thought, answer)


def test_tokens_of_a_thought_are_counted() -> None:
    """Its marks among them; none of the answer's."""
    parser = answer_parser("job", 0, (), Reading(thinking=ThinkingFormat.THINK))
    for piece in (b"<thi", b"nk>", b"a", b"", b"b", b"</think>", b"c", b"d"):
        parser.feed(0, piece)
    assert parser.thoughts == 6
    plain = answer_parser("job", 0, (), Reading(thinking=ThinkingFormat.THINK))
    for piece in (b"<thi", b"s>"):
        plain.feed(0, piece)
    assert plain.thoughts == 0


MARKS = (
    "<tool_call> </tool_call> <function= <parameter=city> [TOOL_CALLS] [ARGS] <think> </think> <escape> STOP ü😀 name"
)
FRAGMENTS = (
    *(text for _, text in (*ONE.values(), *TWO.values())),
    *MARKS.split(),
    "<start_function_call>call:",
    "<｜tool▁calls▁begin｜>",
    *'"{}[],:\n \\',
)


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(ToolFormat),
    parts=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=6),
    cuts=st.lists(st.integers(1, 400), max_size=12),
    think=st.booleans(),
    begun=st.booleans(),
    most=st.sampled_from([None, 1]),
)
def test_however_it_is_cut_it_is_the_same_answer(
    form: ToolFormat, parts: list[str], cuts: list[int], think: bool, begun: bool, most: int | None
) -> None:
    """Bytes one by one, all at once, or cut anywhere."""
    text = "".join(parts).encode("utf-8", "replace").decode()
    reading = {
        "thinking": ThinkingFormat.THINK if think else None,
        "thought_begun": begun,
        "most_calls": most,
        "stop": ("STOP",),
    }
    singly = parse(form, text, **reading)
    assert parse(form, text, cuts=(10**6,), **reading) == singly
    assert parse(form, text, cuts=(*cuts, 10**6), **reading) == singly


@pytest.mark.parametrize("form", sorted(ToolFormat))
def test_a_format_beside_tools_is_text_whatever_it_holds(form: ToolFormat) -> None:
    """An answer that does not begin with a call has none, and one that does is read as ever."""
    for name, (its, text) in ONE.items():
        if its is form:
            assert calls_of(parse(form, f"\n{text}", alone=True)) == [("weather", PARIS)], name
            whole = json.dumps({"said": text}, ensure_ascii=False)
            for cuts in ((), (len(whole.encode()),)):
                choice = parse(form, whole, cuts=cuts, alone=True)
                assert (choice.text, choice.tool_calls) == (whole, []), name


@pytest.mark.parametrize("form", [ToolFormat.XML, ToolFormat.GLM])
def test_a_mark_within_a_json_text_does_not_end_a_value(form: ToolFormat) -> None:
    """However it comes; a string that never ends was none, and then the first mark ends the value."""
    for value, read in (
        ('{"a": "</parameter></arg_value>"}', {"a": "</parameter></arg_value>"}),
        ('{"a": "', '{"a": "'),
    ):
        text = f"<tool_call>\n<function=weather>\n<parameter=where>\n{value}\n</parameter>\n</function>\n</tool_call>"
        if form is ToolFormat.GLM:
            text = f"<tool_call>weather\n<arg_key>where</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
        for cuts in ((), (len(text),), (60, 75)):
            assert calls_of(parse(form, text, cuts=cuts)) == [("weather", {"where": read})]
