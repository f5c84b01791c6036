"""Tools, calls and results as each template wants them, and how answers to them are to be read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npu.answer_format import ThinkingFormat, ToolFormat
from npu.chat_template import ChatTemplate
from npu.constraint import Call, Calls, Constraint, JsonSchema, Thought
from npu.constraint import JsonObject as AnyObject
from npu.engine import Prompt
from npu.engines import Setup
from npu.engines.echo import END, TEMPLATE, EchoTokenizer, EchoWords
from npu.errors import FieldRefused, PromptRefused
from npu.hidden_tokenizer import HiddenTokenizer
from npu.matcher import Matchers
from npu.model import Model
from tasks.events import fold
from tasks.prompting.cards import card_of
from tasks.prompting.prepare import Prepared, Preparer
from tasks.prompting.reading import Reading
from tasks.requests import ChatRequest, CompletionRequest, JsonObject, Message, Regex, Tool, ToolCall, ToolChoice
from tasks.roster import ModelStatus
from tasks.worker.parsing.answer import answer_parser

MODEL = Model(id="m", engine="echo", folder=Path("/nowhere"))
TIME = Tool("time", "Tells the time.", {"type": "object", "properties": {"zone": {"type": "string"}}})
RAIN = Tool("rain")
PATTERN = Tool("rain", parameters={"properties": {"zone": {"type": "string", "pattern": "a"}}}, strict=True)
CALL = ToolCall("call_a", "time", '{"zone": "CET"}')
TURNS = (
    Message("user", "When?"),
    Message("assistant", "", reasoning="Hm.", tool_calls=(CALL,)),
    Message("tool", "12:00", tool_call_id="call_a"),
)

AS_OBJECT = """\
{%- if tools %}<tool_call>{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for message in messages %}
[{{ message.role }}] {{ message.content }}
{%- for call in message.tool_calls or [] %} {{ call.id }} {{ call.function.name }}
{{- ' ' }}{{ call.function.arguments | tojson }}{% endfor %}
{%- if message.role == 'tool' %} of {{ message.name }} {{ message.tool_call_id }}{% endif %}
{%- if message.reasoning_content is defined %} thought {{ message.reasoning_content }}{% endif %}
{%- endfor %}"""
JOINED = AS_OBJECT.replace("{{ call.function.arguments | tojson }}", "{{ 'args ' + call.function.arguments }}")
PASTED = AS_OBJECT.replace("{{ call.function.arguments | tojson }}", "{{ call.function.arguments }}")
SHORT = AS_OBJECT.replace(
    "{{ call.id }}", "{% if call.id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}{{ call.id }}"
)


class Tokenizer(EchoTokenizer):
    """Has the marks of thoughts as control tokens: the markers of the echo stand for them."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return super().encode(
            text.replace("[THINK]", "<|eos|>").replace("[/THINK]", "<|end|>"), parse_special=parse_special
        )


def preparer(source: str, model: Model = MODEL, **fields: Any) -> Preparer:
    return Preparer(replace(model, **fields), Tokenizer(), ChatTemplate(source), 4000)


def text(source: str, request: ChatRequest, **fields: Any) -> str:
    return preparer(source, **fields).text_of(request)


def reading(source: str, request: ChatRequest, **fields: Any) -> Reading | None:
    prepared = preparer(source, **fields).prepare(request)
    assert isinstance(prepared, Prepared)
    return prepared.reading


def ask(*messages: Message, **fields: Any) -> ChatRequest:
    return ChatRequest(messages or (Message("user", "When?"),), **fields)


def test_tools_are_described_as_functions() -> None:
    """With a schema even where none was given, and without words that are not the model's to read."""
    source = "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    said = text(source, ask(tools=(TIME, Tool("rain", strict=True))))
    assert [json.loads(line)["function"] for line in said.splitlines()] == [
        {"name": "time", "description": "Tells the time.", "parameters": TIME.parameters},
        {"name": "rain", "description": "", "parameters": {"type": "object", "properties": {}}},
    ]
    assert all(json.loads(line)["type"] == "function" for line in said.splitlines())


@pytest.mark.parametrize(
    ("source", "written"),
    [(AS_OBJECT, '{"zone": "CET"}'), (JOINED, 'args {"zone": "CET"}'), (PASTED, '{"zone": "CET"}')],
    ids=["object", "joined", "pasted"],
)
def test_arguments_are_an_object_or_a_text(source: str, written: str) -> None:
    """As the template takes them; never in Python's way of writing."""
    assert f"call_a time {written}" in text(source, ask(*TURNS))


def test_a_result_has_the_name_of_its_tool() -> None:
    """Found by the call's id, or the last call where there is none."""
    assert "[tool] 12:00 of time call_a" in text(AS_OBJECT, ask(*TURNS))
    assert "[tool] 12:00 of time" in text(AS_OBJECT, ask(*TURNS[:2], Message("tool", "12:00")))
    assert "[tool] 12:00 of mine" in text(AS_OBJECT, ask(*TURNS[:2], Message("tool", "12:00", name="mine")))


def test_calls_and_results_without_ids_belong_together_in_order() -> None:
    """Or by name; a template may demand ids."""
    calls = (ToolCall("", "time", "{}"), ToolCall("", "rain", "{}"), ToolCall("", "time", "{}"))
    results = (Message("tool", "1", name="rain"), Message("tool", "2"), Message("tool", "3"), Message("tool", "4"))
    said = text(AS_OBJECT, ask(TURNS[0], Message("assistant", "", tool_calls=calls), *results))
    assert re.findall(r"\[tool\] (\d) of (\w*) (\w*)", said) == [
        ("1", "rain", "call00001"),
        ("2", "time", "call00000"),
        ("3", "time", "call00002"),
        ("4", "", ""),
    ]


def test_a_template_may_take_one_call_in_a_turn() -> None:
    """What the model has called at once is then told one after another, each with its result."""
    single = "{% if message.tool_calls and message.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}"
    source = AS_OBJECT.replace("[{{ message.role }}]", single + "{% endif %}[{{ message.role }}]")
    calls = (ToolCall("a", "time", "{}"), ToolCall("b", "rain", "{}"))
    results = (Message("tool", "2", tool_call_id="b"), Message("tool", "1", tool_call_id="a"))
    said = text(
        source, ask(TURNS[0], Message("assistant", "Well.", tool_calls=calls), *results, Message("user", "So?"))
    )
    assert [turn.strip() for turn in said.split("[")[2:]] == [
        "assistant] Well. a time {}",
        "tool] 1 of time a",
        "assistant]  b rain {}",
        "tool] 2 of rain b",
        "user] So?",
    ]


def test_a_template_that_writes_calls_may_tell_of_no_tools() -> None:
    """Then they stand in the system message, and calls are written as the template does. An empty text is none."""
    source = (
        "{% for message in messages %}[{{ message.role }}] {{ 'nothing' if message.content is none else message.content }}"
        "{% for call in message.tool_calls or [] %}<｜tool▁calls▁begin｜>{{ call.function.name + call.function.arguments }}"
        "{% endfor %}{% endfor %}"
    )
    said = text(source, ask(*TURNS, tools=(TIME,)))
    assert said.startswith("[system] You can call these tools")
    assert said.count("function<｜tool▁sep｜>the tool's name") == 1
    assert '[assistant] nothing<｜tool▁calls▁begin｜>time{"zone": "CET"}[tool] 12:00' in said


def test_thoughts_of_earlier_turns_are_left_to_the_template() -> None:
    """It knows which of them its model wants to read again."""
    assert "thought Hm." in text(AS_OBJECT, ask(*TURNS))


def test_ids_are_shortened_where_the_template_demands_it() -> None:
    """The same for a call and its result."""
    said = text(SHORT, ask(*TURNS))
    [made] = re.findall(r" (\w{9}) time ", said)
    assert f"of time {made}" in said


def test_arguments_that_are_no_json_can_be_read_again() -> None:
    """A model that once wrote nonsense does not lock its conversation."""
    turns = (TURNS[0], Message("assistant", "", tool_calls=(ToolCall("a", "time", "{oops"),)))
    assert '"{oops"' in text(AS_OBJECT, ask(*turns))


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    """None of them, or those that were not allowed; and then none are looked for."""
    tools = (TIME, RAIN)
    shown = text(AS_OBJECT, ask(tools=tools, tool_choice=ToolChoice("auto", ("rain",))))
    assert ("rain" in shown, '"time"' in shown) == (True, False)
    hidden = ask(tools=tools, tool_choice=ToolChoice("none"))
    assert "<tool_call>" not in text(AS_OBJECT, hidden)
    assert reading(AS_OBJECT, hidden) is None
    made = reading(AS_OBJECT, ask(tools=tools, tool_choice=ToolChoice("auto", ("rain",)), parallel_tool_calls=False))
    assert made is not None
    assert (made.calls, made.tools, made.most_calls) == (ToolFormat.HERMES, (RAIN,), 1)


@pytest.mark.parametrize(
    ("source", "request_", "field"),
    [
        (TEMPLATE, ask(tools=(TIME,)), "tools"),
        (AS_OBJECT, ask(tools=(TIME,), tool_choice=ToolChoice("auto", ("snow",))), "tool_choice"),
        (AS_OBJECT, ask(tool_choice=ToolChoice("required")), "tool_choice"),
        (AS_OBJECT + "<function=", ask(tools=(PATTERN,), tool_choice=ToolChoice("required")), "strict"),
        (AS_OBJECT + "<function=", ask(tools=(PATTERN,)), "strict"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(source: str, request_: ChatRequest, field: str) -> None:
    """Instead of being forgotten."""
    with pytest.raises(FieldRefused) as refused:
        preparer(source).prepare(request_)
    assert refused.value.field == field


def test_a_manifest_may_teach_a_format() -> None:
    """To a model whose template knows no tools: in the system message, with calls and results as turns."""
    said = text(TEMPLATE, ask(Message("system", "Be kind."), *TURNS, tools=(TIME,)), tool_format="json")
    assert said.startswith("<|system|>Be kind.\n\n")
    assert '{"name": "time", "description": "Tells the time.", "parameters":' in said
    assert (
        '<|assistant|>{"name": "time", "arguments": {"zone": "CET"}}<|end|><|user|>The result of time:\n12:00<|end|>'
        in said
    )
    hermes = text(TEMPLATE, ask(*TURNS, tools=(TIME,)), tool_format="hermes")
    assert hermes.startswith("<|system|>You can call these tools")
    assert '<tool_call>{"name": "time", "arguments": {"zone": "CET"}}</tool_call>' in hermes
    made = reading(TEMPLATE, ask(tools=(TIME,)), tool_format="json")
    assert made is not None
    assert made.calls is ToolFormat.JSON
    with pytest.raises(FieldRefused):
        preparer(TEMPLATE, tool_format="mistral").prepare(ask(tools=(TIME,)))


@pytest.mark.parametrize(("tail", "begun"), [("<think>\n", True), ("", False), ("<think>\n\n</think>\n\n", False)])
def test_a_thought_may_begin_in_the_prompt(tail: str, begun: bool) -> None:
    """Where the template opens it there, told from the tokens, so also of a prompt that is on record."""
    source = "{{ messages[0].content }}{# </think> #}" + tail
    made = reading(source, ask())
    assert made is not None
    assert (made.thinking, made.thought_begun) == (ThinkingFormat.THINK, begun)
    known = preparer(source).prepare(ask(), [EchoTokenizer().encode("What was asked" + tail)])
    assert isinstance(known, Prepared)
    assert known.reading == made


def test_marks_that_are_control_tokens_are_known_by_their_ids() -> None:
    """Engines give them without bytes, and a prompt may end with one."""
    made = reading("{{ messages[0].content }}[THINK]{# [/THINK] #}", ask())
    assert made is not None
    assert sorted(made.markers.values()) == [b"[/THINK]", b"[THINK]"]
    assert made.thought_begun


def test_a_mark_of_which_a_part_is_a_control_token() -> None:
    """That part is looked up, and the rest is text."""

    class Channels(EchoTokenizer):
        def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
            text = text.replace("<|channel>", "<|eos|>").replace("<channel|>", "<|end|>")
            return super().encode(text, parse_special=parse_special)

    source = ChatTemplate("{{ messages[0].content }}{# <channel|> #}<|channel>thought\n")
    prepared = Preparer(MODEL, Channels(), source, 4000).prepare(ask())
    assert isinstance(prepared, Prepared)
    assert prepared.reading is not None
    assert prepared.reading.thought_begun
    parser = answer_parser("job", 0, (), prepared.reading)
    events = [*parser.feed(72, b"Hm"), *parser.feed(END, b""), *parser.feed(72, b"So"), *parser.finish()]
    choice = fold(events).choice(0)
    assert (choice.reasoning, choice.text) == ("Hm", "So")


def test_an_answer_that_a_client_began_with_a_thought() -> None:
    """Goes on inside it."""
    source = "{% for message in messages %}{{ message.content }}{% endfor %}{# </think> #}"
    for begun, expected in (("<think>Hm", True), ("<think>Hm</think>So", False), ("So", False)):
        made = reading(source, ask(Message("user", "Why?"), Message("assistant", begun), continue_last=True))
        assert made is not None
        assert made.thought_begun is expected


def test_a_budget_of_thought() -> None:
    """Comes with the tokens that end a thought; of none the template is told as well. Other models do not think anyway."""
    source = "{{ messages[0].content }}{% if enable_thinking is false %}</think>{% endif %}"
    made = reading(source, ask(thinking_budget=7))
    assert made is not None
    assert (made.budget, b"".join(data for _, data in made.closing)) == (7, b"\n</think>")
    assert text(source, ask(thinking_budget=0)) == "When?</think>"
    assert text(source, ask(thinking_budget=0, template_options={"enable_thinking": True})) == "When?"
    assert reading(TEMPLATE, ask(thinking_budget=7)) is None


def held(request: ChatRequest, source: str = AS_OBJECT, **fields: Any) -> Constraint | None:
    prepared = preparer(source, **fields).prepare(request)
    assert isinstance(prepared, Prepared)
    return prepared.sampling.constraint


def test_who_must_call_is_held_to_it() -> None:
    """To the tools that may be called, with arguments that fit their schemas."""
    made = held(ask(tools=(TIME, RAIN), tool_choice=ToolChoice("required", ("time",)), parallel_tool_calls=False))
    call = Call(
        "<tool_call>",
        '<tool_call>\n{"name": "time", "arguments": ',
        JsonSchema({"type": "object", "properties": {"zone": {"type": "string"}}}),
        "}\n</tool_call>",
    )
    assert made == Constraint(Calls((call,), required=True, several=False))


def test_who_may_call_is_held_to_strict_tools_alone() -> None:
    """The others take any object; without a strict one there is nothing to hold to."""
    assert held(ask(tools=(TIME, RAIN))) is None
    assert held(ask(tools=(Tool("rain", strict=True),), tool_choice=ToolChoice("none"))) is None
    made = held(ask(tools=(TIME, Tool("rain", strict=True))))
    assert made is not None
    assert isinstance(made.form, Calls)
    assert not made.form.required
    assert [call.form for call in made.form.calls] == [AnyObject(), JsonSchema({"type": "object"})]


def test_who_may_call_and_has_a_format_is_held_to_either() -> None:
    """As a whole: calls, of which the strict ones fit their schemas, or what fits the format. Who must call only calls."""
    wish = JsonObject()
    made = held(ask(tools=(TIME, Tool("rain", strict=True)), output=wish))
    assert made is not None
    assert isinstance(made.form, Calls)
    assert (made.form.required, made.form.otherwise) == (False, AnyObject())
    assert [call.form for call in made.form.calls] == [AnyObject(), JsonSchema({"type": "object"})]
    made = held(ask(tools=(TIME,), output=wish, tool_choice=ToolChoice("required")))
    assert made == held(ask(tools=(TIME,), tool_choice=ToolChoice("required")))
    assert held(ask(tools=(TIME,), output=wish, tool_choice=ToolChoice("none"))) == Constraint(AnyObject())
    understood = reading(AS_OBJECT, ask(tools=(TIME,), output=wish))
    assert understood is not None
    assert understood.alone


@pytest.mark.parametrize(("form", "key"), [(ToolFormat.LLAMA, "parameters"), (ToolFormat.JSON, "arguments")])
def test_calls_without_marks_are_told_from_a_format_as_json(form: ToolFormat, key: str) -> None:
    """As objects beside it, whose references are found where they were; a regular expression cannot stand beside them."""
    parameters = {"properties": {"zone": {"$ref": "#/$defs/zone"}}, "$defs": {"zone": {"enum": ["CET"]}}}
    tool = Tool("time", parameters=parameters, strict=True)
    made = held(ask(tools=(tool,), output=JsonObject()), "{# tools #}x", tool_format=form.value)
    assert made is not None
    matcher = Matchers(EchoWords(), EchoTokenizer()).match(made)
    assert all(map(matcher.accept, f'{{"name": "time", "{key}": {{"zone": "CET"}}}}'.encode()))
    assert matcher.may_end
    with pytest.raises(FieldRefused, match="without marks"):
        held(ask(tools=(tool,), output=Regex("a+")), "{# tools #}x", tool_format=form.value)


def test_what_is_thought_before_is_held_to_nothing() -> None:
    """Whatever the answer is held to."""
    source = "{{ messages[0].content }}{# </think> #}<think>"
    for request in (ask(output=JsonObject()), ask(tools=(TIME,), tool_choice=ToolChoice("required"))):
        made = held(request, source + "{# tools #}")
        assert made is not None
        assert made.thought == Thought("<think>", "</think>", opened=True)


@pytest.mark.parametrize(
    "form", sorted(set(ToolFormat) - {ToolFormat.XML, ToolFormat.GLM, ToolFormat.GEMMA, ToolFormat.GEMMA4})
)
@pytest.mark.parametrize("hint", ["", "[ARGS]", "```json"])
def test_what_calls_are_held_to_is_what_is_read(form: ToolFormat, hint: str) -> None:
    """Each format is written as its reader takes it."""
    made = held(
        ask(tools=(TIME,), tool_choice=ToolChoice("required")), f"{{# tools {hint} #}}x", tool_format=form.value
    )
    assert made is not None
    assert isinstance(made.form, Calls)
    [call] = made.form.calls
    assert call.begin.startswith(call.trigger)
    parser = answer_parser("job", 0, (), Reading(calls=form, tools=(TIME,)))
    events = (*parser.feed(0, f'{call.begin}{{"zone": "CET"}}{call.end}'.encode()), *parser.finish())
    choice = fold(events).choice(0)
    assert [(each.name, each.arguments) for each in choice.tool_calls] == [("time", '{"zone": "CET"}')]
    assert choice.text == ""


@pytest.mark.parametrize("word", ["thinking", "enable_thinking"])
def test_whether_to_think_is_told_in_the_templates_own_word(word: str) -> None:
    """What a client says in it has the last word."""
    source = "{{ 'yes' if " + word + " | default(true) else 'no' }}"
    assert text(source, ask(template_options={"enable_thinking": False})) == "no"
    assert text(source, ask(template_options={"enable_thinking": False, word: True})) == "yes"
    assert text(source, ask()) == "yes"


def test_completions_are_text() -> None:
    """Nobody knows what their prompts ask for."""
    prepared = preparer(AS_OBJECT + "</think>").prepare(CompletionRequest(("<think>",)))
    assert isinstance(prepared, Prepared)
    assert prepared.reading is None


def test_what_only_the_runtime_can_render() -> None:
    """Thoughts are told from its text; tools and budgets it cannot be given."""
    hidden = Preparer(MODEL, HiddenTokenizer("m"), None, 100)
    prepared = hidden.prepare(ask())
    assert isinstance(prepared, Prepared)
    assert prepared.reading == Reading(ThinkingFormat.THINK)
    for request in (ask(tools=(TIME,)), ask(thinking_budget=3)):
        with pytest.raises(PromptRefused, match=r"tokenizer\.json"):
            hidden.prepare(request)


def test_cards_tell_who_calls_tools_and_who_thinks(tmp_path: Path) -> None:
    """By the template, or the manifest."""

    def capabilities(**fields: Any) -> list[str]:
        card = card_of(Model(id="m", engine="echo", folder=tmp_path, **fields), "board", Setup(tmp_path))
        return ModelStatus(card=card, served=True, loaded=True, loading=False, waiting=0).capabilities

    plain = ["completion", "chat"]
    assert capabilities() == plain
    assert capabilities(template=AS_OBJECT + "</think>") == [*plain, "tools", "thinking"]
    assert capabilities(template=AS_OBJECT + "</think>", tool_format="none", thinking_format="none") == plain
    assert capabilities(tool_format="json") == [*plain, "tools"]
    assert capabilities(tool_format="mistral") == plain


def test_a_prompt_is_as_long_as_it_was(tmp_path: Path) -> None:
    """What is asked without tools is rendered as ever."""
    prepared = preparer(TEMPLATE).prepare(ask(Message("user", "hi", name="me")))
    assert isinstance(prepared, Prepared)
    assert prepared.prompts == (
        Prompt(EchoTokenizer().encode("<|user|>hi<|end|><|assistant|>"), prepared.prompts[0].max_tokens),
    )
