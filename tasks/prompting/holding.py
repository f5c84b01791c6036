"""What an answer is held to: the format its client asked for, or the calls it must or may make."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, assert_never

from npu import constraint
from npu.answer_format import ToolFormat
from npu.constraint import Call, Calls, Constraint, Form, Thought, Words
from npu.errors import FieldRefused, PromptRefused, SamplingRefused
from npu.grammar import check_constraint
from tasks import requests
from tasks.prompting import arguments
from tasks.prompting.reading import Reading
from tasks.requests import ChatRequest, GenerateRequest, OutputFormat, Tool

_CLOSING = {ToolFormat.GEMMA: "<start_function_response>", ToolFormat.GEMMA4: "<|tool_response>"}
"""Where a model ends its turn behind calls by beginning what they will bring."""


def constraint_of(request: GenerateRequest, reading: Reading | None, template: str) -> Constraint | None:
    """What the answers to a request are held to behind their thoughts; None nothing. `template` is the chat template's source.

    Raises `PromptRefused`, and `SamplingRefused` on a format that no engine could keep to.
    """
    form: Form | None = _form(request.output) if request.output is not None else None
    if form is not None:
        check_constraint(Constraint(form))
    if isinstance(request, ChatRequest):
        form = _calls(request, reading, template, form) or form
    if form is None:
        return None
    if isinstance(form, Calls):
        _check(form)
    if isinstance(request, ChatRequest) and request.continue_last:
        raise PromptRefused(
            "An answer that the client has begun cannot be held to a format: what it is held to would have to begin in the "
            "middle. Leave out either the beginning or the format."
        )
    if reading is None or reading.thinking is None:
        return Constraint(form)
    return Constraint(form, Thought(reading.thinking.opening, reading.thinking.closing, reading.thought_begun))


def _check(form: Calls) -> None:
    try:
        check_constraint(Constraint(form))
    except SamplingRefused as refused:  # in the words of who asked for it
        raise FieldRefused("tool_choice" if form.required else "strict", refused.why) from refused


def _form(output: OutputFormat) -> Form:
    match output:
        case requests.JsonObject():
            return constraint.JsonObject()
        case requests.JsonSchema(schema):
            return constraint.JsonSchema(schema)
        case requests.Regex(pattern):
            return constraint.Regex(pattern)
        case requests.Grammar(text, syntax):
            return constraint.Gbnf(text) if syntax == "gbnf" else constraint.Lark(text)
        case _:
            assert_never(output)


def _calls(request: ChatRequest, reading: Reading | None, template: str, output: Form | None) -> Calls | None:
    """The calls that must or may be made; None where the answer is held to none, or to `output` alone."""
    required = request.tool_choice.mode == "required"
    if reading is None or reading.calls is None:
        if required:
            raise FieldRefused(
                "tool_choice", "the request has no tools that could be called. Send `tools`, or leave it out."
            )
        return None
    if not required and output is None and not any(tool.strict for tool in reading.tools):
        return None
    several = reading.most_calls is None and reading.calls is not ToolFormat.JSON  # there it would have to be a list
    closing = _CLOSING.get(reading.calls, "")
    if required or output is None or reading.calls not in (ToolFormat.LLAMA, ToolFormat.JSON):
        calls = tuple(_call(reading.calls, tool, required, template) for tool in reading.tools)
        if reading.calls is ToolFormat.XML and not required and output is None:
            calls += tuple(_without_marks(call) for call in calls)
        output = None if required else output
    elif isinstance(output, constraint.JsonObject | constraint.JsonSchema):
        calls = tuple(_bare_call(reading.calls, tool) for tool in reading.tools)
    else:
        raise FieldRefused(
            "output",
            f"this model writes calls in the format '{reading.calls}', without marks, so an answer that may be one can be held "
            "to JSON, but to no regular expression or grammar. Leave out the tools or the format.",
        )
    return Calls(calls, required, several, output, closing)


def _bare_call(form: ToolFormat, tool: Tool) -> Call:
    """A call without marks, as an object that may stand where another one may: told apart only as they go on."""
    parameters = _parameters(tool) if tool.strict else {"type": "object"}
    roots = {
        key: parameters[key] for key in ("$defs", "definitions") if key in parameters
    }  # references begin at the root
    arguments_key = "parameters" if form is ToolFormat.LLAMA else "arguments"
    whole = {
        **roots,
        "type": "object",
        "properties": {"name": {"const": tool.name}, arguments_key: parameters},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }
    return Call("", "", constraint.JsonSchema(whole))


def _parameters(tool: Tool) -> dict[str, Any]:
    return {"type": "object", **(tool.parameters or {})}


def _call(form: ToolFormat, tool: Tool, required: bool, template: str) -> Call:
    held, field = tool.strict or required, "strict" if tool.strict else "tool_choice" if required else "tools"
    given: Form = constraint.JsonSchema(_parameters(tool)) if held else constraint.JsonObject()
    name = json.dumps(tool.name, ensure_ascii=False)
    match form:
        case ToolFormat.HERMES:
            begin = f'<tool_call>\n{{"name": {name}, "arguments": '
            return Call("<tool_call>", begin, given, "}\n</tool_call>")
        case ToolFormat.LLAMA:
            return Call('{"name": ', f'{{"name": {name}, "parameters": ', given, "}")
        case ToolFormat.JSON:
            return Call('{"name": ', f'{{"name": {name}, "arguments": ', given, "}")
        case ToolFormat.MISTRAL if "[ARGS]" in template:
            return Call("[TOOL_CALLS]", f"[TOOL_CALLS]{tool.name}[ARGS]", given)
        case ToolFormat.MISTRAL:
            return Call("[TOOL_CALLS]", f'[TOOL_CALLS][{{"name": {name}, "arguments": ', given, "}]")
        case ToolFormat.DEEPSEEK:
            outer, inner = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
            end = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            if "```json" in template:
                return Call(outer, f"{outer}{inner}function<｜tool▁sep｜>{tool.name}\n```json\n", given, f"\n```{end}")
            return Call(outer, f"{outer}{inner}{tool.name}<｜tool▁sep｜>", given, end)
        case ToolFormat.XML:
            tagged = arguments.tagged(tool, _xml, "</parameter>", "\n", "\n", held=held, field=field)
            return Call("<tool_call>", f"<tool_call>\n<function={tool.name}>\n", tagged, "</function>\n</tool_call>")
        case ToolFormat.GLM:
            gap = "" if "</arg_key><arg_value>" in template else "\n"  # newer ones write it all on one line
            tags = partial(_glm, gap)
            tagged = arguments.tagged(tool, tags, "</arg_value>", "", gap, held=held, field=field)
            return Call("<tool_call>", f"<tool_call>{tool.name}{gap}", tagged, "</tool_call>")
        case ToolFormat.GEMMA:
            written = arguments.gemma(tool, "<escape>", held=held, field=field)
            return Call(
                "<start_function_call>", f"<start_function_call>call:{tool.name}", written, "<end_function_call>"
            )
        case ToolFormat.GEMMA4:
            written = arguments.gemma(tool, '<|"|>', held=held, field=field)
            return Call("<|tool_call>", f"<|tool_call>call:{tool.name}", written, "<tool_call|>")
        case _:
            assert_never(form)


def _without_marks(call: Call) -> Call:
    """The same as models write it that leave out the outer marks."""
    inner = call.begin.removeprefix("<tool_call>\n")
    return Call("<function=", inner, call.form, call.end.removesuffix("\n</tool_call>"))


def _xml(name: Form) -> tuple[Form, ...]:
    return Words("<parameter="), name, Words(">\n")


def _glm(gap: str, name: Form) -> tuple[Form, ...]:
    return Words("<arg_key>"), name, Words("</arg_key>"), Words(gap), Words("<arg_value>")
