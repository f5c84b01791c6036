"""A conversation as chat templates want it: messages, calls of tools and their results, and the tools themselves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from msgspec import structs

from npu.answer_format import ToolFormat, knows_calls, knows_tools, tool_format
from npu.chat_template import ChatTemplate
from npu.errors import TemplateFailed
from npu.model import Model
from tasks.requests import Message, Tool, ToolCall

_SHORT_IDS = re.compile(r"length\s*(!=|==)\s*9\b")
"""How templates of Mistral demand ids of nine characters."""

_THINKING = re.compile(r"\bthinking\b")
"""What some templates (DeepSeek's, Granite's) call `enable_thinking`."""

_ONE_CALL = "single tool-call"
"""What templates of Llama say when they refuse several calls in a turn."""

_EXAMPLES = {
    ToolFormat.JSON: '{"name": "the tool\'s name", "arguments": {"an argument": "its value"}}',
    ToolFormat.HERMES: '<tool_call>{"name": "the tool\'s name", "arguments": {"an argument": "its value"}}</tool_call>',
    ToolFormat.DEEPSEEK: (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>the tool's name\n```json\n"
        '{"an argument": "its value"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ),
}
"""The formats that can be taught in a system message."""


def calls_tools(model: Model, template: ChatTemplate) -> bool:
    """Whether it can be given tools: its template knows them, or its manifest names a format that can be taught."""
    form = tool_format(model.tool_format, template.source)
    return form is not None and (knows_tools(template.source) or form in _EXAMPLES)


class Conversation:
    """What the variables of one template have to look like."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._knows_tools = knows_tools(template.source)
        self._knows_calls = knows_calls(template.source)
        self._short_ids = _SHORT_IDS.search(template.source) is not None

    def variables(self, messages: Sequence[Message], tools: Sequence[Tool], form: ToolFormat | None) -> dict[str, Any]:
        """`messages` and `tools` for the template."""
        turns = _named(messages)
        if _ONE_CALL in self._template.source:
            turns = _singly(turns)
        if not self._knows_calls:
            turns = [_as_text(message, form) for message in turns]
        if not self._knows_tools and tools and form is not None:
            turns = _taught(turns, tools, form)
        return {
            "messages": [self._message(message, form) for message in turns],
            "tools": [_tool(tool) for tool in tools] if tools and self._knows_tools else None,
        }

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Variables that a request asks for; whether to think is told in the template's own word."""
        source = self._template.source
        other = "enable_thinking" in given and "enable_thinking" not in source and _THINKING.search(source)
        return {"thinking": given["enable_thinking"], **given} if other else dict(given)

    @cached_property
    def _text_arguments(self) -> bool:
        """It wants the arguments of a call as JSON text, and not as an object; found out by rendering one."""
        return _wants_text(self._template)

    def _message(self, message: Message, form: ToolFormat | None) -> dict[str, Any]:
        out: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            out["name"] = message.name
        if message.reasoning is not None:
            out["reasoning_content"] = message.reasoning
        if message.tool_calls:
            out["tool_calls"] = [self._call(call) for call in message.tool_calls]
            if form is ToolFormat.DEEPSEEK and not message.content:
                out["content"] = None  # an empty text would be a turn of its own
        if message.tool_call_id is not None:
            out["tool_call_id"] = self._id(message.tool_call_id)
        return out

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = call.arguments if self._text_arguments else _object(call.arguments)
        return {
            "id": self._id(call.id),
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }

    def _id(self, id: str) -> str:
        return hashlib.sha256(id.encode()).hexdigest()[:9] if self._short_ids else id


def _wants_text(template: ChatTemplate) -> bool:
    made = '{"probe": "x"}'

    def render(arguments: object) -> str:
        call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return template.render(
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "1", "name": "f", "tool_call_id": "call00000"},
            ]
        )

    try:
        # Python's way to write a dictionary is what a template gives that takes it for a text.
        if "'probe'" not in render(json.loads(made)):
            return False
    except TemplateFailed:
        pass
    try:
        render(made)
    except TemplateFailed:
        return False
    return True


def _named(messages: Sequence[Message]) -> list[Message]:
    """The conversation with an id for each call, and for each result its call's id and its tool's name.

    Who leaves an id out means the next call that has no result yet.
    """
    out: list[Message] = []
    open_: list[ToolCall] = []
    count = 0
    for message in messages:
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                calls.append(call if call.id else structs.replace(call, id=f"call{count:05d}"))
                count += 1
            open_ = [*calls]
            message = structs.replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            fits = [
                call
                for call in open_
                if message.tool_call_id in (None, "", call.id)
                and (message.tool_call_id or message.name in (None, call.name))
            ]
            if fits:
                name = message.name if message.name is not None else fits[0].name
                message = structs.replace(message, tool_call_id=fits[0].id, name=name)
                open_.remove(fits[0])
        out.append(message)
    return out


def _singly(messages: Sequence[Message]) -> list[Message]:
    """The same with one call in a turn, and its result behind it."""
    out: list[Message] = []
    moved: set[int] = set()
    for place, message in enumerate(messages):
        if place in moved:
            continue
        if len(message.tool_calls) < 2:
            out.append(message)
            continue
        said = message
        for call in message.tool_calls:
            out.append(structs.replace(said, tool_calls=(call,)))
            said = Message("assistant", "")
            for later in range(place + 1, len(messages)):
                if messages[later].role == "tool" and messages[later].tool_call_id == call.id:
                    out.append(messages[later])
                    moved.add(later)
                    break
    return out


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters if tool.parameters is not None else {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments  # what the model once said, and may read again


def _as_text(message: Message, form: ToolFormat | None) -> Message:
    """For a template that knows no calls: they, and their results, are turns like others."""
    if message.role == "tool":
        return Message("user", f"The result of {message.name or 'the tool'}:\n{message.content}")
    if not message.tool_calls:
        return message
    said = "\n".join(_written(call, form) for call in message.tool_calls)
    return structs.replace(message, content=f"{message.content}\n{said}" if message.content else said, tool_calls=())


def _taught(messages: Sequence[Message], tools: Sequence[Tool], form: ToolFormat) -> list[Message]:
    """For a template that tells of no tools: they stand in the system message."""
    lines = "\n".join(json.dumps(_tool(tool)["function"], ensure_ascii=False) for tool in tools)
    lesson = (
        "You can call these tools, each described by a JSON object:\n"
        f"{lines}\n"
        f"To call one, answer with nothing but\n{_EXAMPLES[form]}\n"
        "Its result will then be told to you. Where no tool is needed, answer in words."
    )
    if messages and messages[0].role == "system":
        return [structs.replace(messages[0], content=f"{messages[0].content}\n\n{lesson}"), *messages[1:]]
    return [Message("system", lesson), *messages]


def _written(call: ToolCall, form: ToolFormat | None) -> str:
    text = f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments or "{}"}}}'
    return f"<tool_call>{text}</tool_call>" if form is ToolFormat.HERMES else text
