"""What an answer is held to: the format its client asked for, or the calls it must or may make."""

from __future__ import annotations

import json
from typing import assert_never

from npu import constraint
from npu.answer_format import ToolFormat
from npu.constraint import Call, Calls, Constraint, Form, Thought
from npu.errors import FieldRefused, PromptRefused, SamplingRefused
from npu.grammar import check_constraint
from tasks import requests
from tasks.prompting.reading import Reading
from tasks.requests import ChatRequest, GenerateRequest, OutputFormat, Tool


def constraint_of(request: GenerateRequest, reading: Reading | None, template: str) -> Constraint | None:
    """What the answers to a request are held to behind their thoughts; None nothing. `template` is the chat template's source.

    Raises `PromptRefused`, and `SamplingRefused` on a format that no engine could keep to.
    """
    form: Form | None = _calls(request, reading, template) if isinstance(request, ChatRequest) else None
    if request.output is not None:
        if reading is not None and reading.calls is not None:
            raise FieldRefused(
                "output", "an answer cannot be held to a format while it may call tools. Send one of the two."
            )
        form = _form(request.output)
    if form is None:
        return None
    _check(form)
    if isinstance(request, ChatRequest) and request.continue_last:
        raise PromptRefused(
            "An answer that the client has begun cannot be held to a format: what it is held to would have to begin in the "
            "middle. Leave out either the beginning or the format."
        )
    if reading is None or reading.thinking is None:
        return Constraint(form)
    return Constraint(form, Thought(reading.thinking.opening, reading.thinking.closing, reading.thought_begun))


def _check(form: Form) -> None:
    try:
        check_constraint(Constraint(form))
    except SamplingRefused as refused:
        if isinstance(form, Calls):  # in the words of who asked for it
            raise FieldRefused("tool_choice" if form.required else "strict", refused.why) from refused
        raise


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


def _calls(request: ChatRequest, reading: Reading | None, template: str) -> Calls | None:
    required = request.tool_choice.mode == "required"
    if reading is None or reading.calls is None:
        if required:
            raise FieldRefused(
                "tool_choice", "the request has no tools that could be called. Send `tools`, or leave it out."
            )
        return None
    if not required and not any(tool.strict for tool in reading.tools):
        return None
    calls = tuple(_call(reading.calls, tool, required, template) for tool in reading.tools)
    several = reading.most_calls is None and reading.calls is not ToolFormat.JSON  # there it would have to be a list
    return Calls(calls, required, several)


def _call(form: ToolFormat, tool: Tool, required: bool, template: str) -> Call:
    arguments: Form = constraint.JsonObject()
    if tool.strict or required:
        arguments = constraint.JsonSchema({"type": "object", **(tool.parameters or {})})
    name = json.dumps(tool.name, ensure_ascii=False)
    match form:
        case ToolFormat.HERMES:
            begin = f'<tool_call>\n{{"name": {name}, "arguments": '
            return Call("<tool_call>", begin, arguments, "}\n</tool_call>")
        case ToolFormat.LLAMA:
            return Call('{"name": ', f'{{"name": {name}, "parameters": ', arguments, "}")
        case ToolFormat.JSON:
            return Call('{"name": ', f'{{"name": {name}, "arguments": ', arguments, "}")
        case ToolFormat.MISTRAL if "[ARGS]" in template:
            return Call("[TOOL_CALLS]", f"[TOOL_CALLS]{tool.name}[ARGS]", arguments)
        case ToolFormat.MISTRAL:
            return Call("[TOOL_CALLS]", f'[TOOL_CALLS][{{"name": {name}, "arguments": ', arguments, "}]")
        case ToolFormat.DEEPSEEK:
            outer, inner = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
            end = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            if "```json" in template:
                return Call(
                    outer, f"{outer}{inner}function<｜tool▁sep｜>{tool.name}\n```json\n", arguments, f"\n```{end}"
                )
            return Call(outer, f"{outer}{inner}{tool.name}<｜tool▁sep｜>", arguments, end)
        case ToolFormat.XML | ToolFormat.GEMMA | ToolFormat.GEMMA4:
            raise FieldRefused(
                "tool_choice" if required else "strict",
                f"this model writes calls in the format '{form}', which is not JSON, and cannot be held to it. Leave it out.",
            )
        case _:
            assert_never(form)
