"""A conversation as chat templates want it: messages, calls of tools and their results, and the tools themselves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from npu.answer_format import ToolFormat, knows_tools, tool_format
from npu.chat_template import ChatTemplate
from npu.errors import TemplateFailed
from npu.model import Model
from tasks.requests import Message, Tool, ToolCall

_SHORT_IDS = re.compile(r"length\s*(!=|==)\s*9\b")
"""How templates of Mistral demand ids of nine characters."""

_EXAMPLES = {
    ToolFormat.JSON: '{"name": "the tool\'s name", "arguments": {"an argument": "its value"}}',
    ToolFormat.HERMES: '<tool_call>{"name": "the tool\'s name", "arguments": {"an argument": "its value"}}</tool_call>',
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
        self._short_ids = _SHORT_IDS.search(template.source) is not None

    def variables(self, messages: Sequence[Message], tools: Sequence[Tool], form: ToolFormat | None) -> dict[str, Any]:
        """`messages` and `tools` for the template."""
        if self._knows_tools:
            return {
                "messages": [self._message(message, _name(messages, place)) for place, message in enumerate(messages)],
                "tools": [_tool(tool) for tool in tools] or None,
            }
        return {"messages": [_plain(message) for message in _taught(messages, tools, form)], "tools": None}

    @cached_property
    def _text_arguments(self) -> bool:
        """It wants the arguments of a call as JSON text, and not as an object; found out by rendering one."""
        return _wants_text(self._template)

    def _message(self, message: Message, name: str | None) -> dict[str, Any]:
        out = _plain(message)
        if name is not None:
            out["name"] = name
        if message.tool_calls:
            out["tool_calls"] = [self._call(call) for call in message.tool_calls]
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


def _plain(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        out["name"] = message.name
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    return out


def _name(messages: Sequence[Message], place: int) -> str | None:
    """The tool that a result is of, where the message itself does not say."""
    message = messages[place]
    if message.role != "tool" or message.name is not None:
        return None
    for before in reversed(messages[:place]):
        for call in before.tool_calls:
            if message.tool_call_id in (None, call.id):
                return call.name
    return None


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


def _taught(messages: Sequence[Message], tools: Sequence[Tool], form: ToolFormat | None) -> Sequence[Message]:
    """The conversation for a template that knows no tools: they stand in the system message, calls and results in turns."""
    out: list[Message] = []
    for place, message in enumerate(messages):
        if message.role == "tool":
            name = message.name or _name(messages, place) or "the tool"
            out.append(Message("user", f"The result of {name}:\n{message.content}"))
        elif message.tool_calls:
            said = "\n".join(_written(call, form) for call in message.tool_calls)
            out.append(Message("assistant", f"{message.content}\n{said}" if message.content else said))
        else:
            out.append(message)
    if not tools or form is None:
        return out
    lines = "\n".join(json.dumps(_tool(tool)["function"], ensure_ascii=False) for tool in tools)
    lesson = (
        "You can call these tools, each described by a JSON object:\n"
        f"{lines}\n"
        f"To call one, answer with nothing but\n{_EXAMPLES[form]}\n"
        "Its result will then be told to you. Where no tool is needed, answer in words."
    )
    if out and out[0].role == "system":
        return [Message("system", f"{out[0].content}\n\n{lesson}"), *out[1:]]
    return [Message("system", lesson), *out]


def _written(call: ToolCall, form: ToolFormat | None) -> str:
    text = f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments or "{}"}}}'
    return f"<tool_call>{text}</tool_call>" if form is ToolFormat.HERMES else text
