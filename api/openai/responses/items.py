"""The items of a conversation as turns that a model knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from api.openai.responses.tools import arguments_of, seen_name
from tasks.requests import Message, ToolCall

Items = list[dict[str, Any]]
"""As they came, or were sent: each a JSON object that was checked before."""


def with_types(items: Iterable[dict[str, Any]]) -> Items:
    """The items with their types, and the contents of messages as parts, as clients read them."""
    return [_typed({name: value for name, value in item.items() if value is not None}) for item in items]


def _typed(item: dict[str, Any]) -> dict[str, Any]:
    if "type" not in item:
        item = {"type": "message" if "role" in item else "item_reference"} | item
    if item["type"] == "message" and isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": item["content"]}
        return item | {"content": [part | {"annotations": []} if kind == "output_text" else part]}
    return item


class _Turn:
    """The assistant's turn that is being put together: it thought, then spoke, then called."""

    def __init__(self) -> None:
        self.thought: list[str] = []
        self.said: list[str] = []
        self.calls: list[ToolCall] = []

    def message(self) -> list[Message]:
        if not (self.thought or self.said or self.calls):
            return []
        thought = "".join(self.thought) or None
        return [Message("assistant", "".join(self.said), reasoning=thought, tool_calls=tuple(self.calls))]


def messages_of(items: Sequence[dict[str, Any]], instructions: str | None) -> tuple[Message, ...]:
    """The conversation that these items are, behind the instructions."""
    messages = [Message("system", instructions)] if instructions else []
    turn = _Turn()
    names: dict[str, str] = {}
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            if turn.said or turn.calls:
                messages += turn.message()
                turn = _Turn()
            turn.thought.append(_thoughts(item))
        elif kind in ("function_call", "custom_tool_call"):
            arguments = item["arguments"] if kind == "function_call" else arguments_of(item["input"])
            name = seen_name(item["name"], item.get("namespace"))
            names[item["call_id"]] = name
            turn.calls.append(ToolCall(item["call_id"], name, arguments))
        elif kind == "message" and item["role"] == "assistant":
            if turn.said or turn.calls:
                messages += turn.message()
                turn = _Turn()
            turn.said.append(_text(item["content"]))
        else:
            messages += turn.message()
            turn = _Turn()
            if kind == "message":
                messages.append(Message("user" if item["role"] == "user" else "system", _text(item["content"])))
            else:
                call = item["call_id"]
                messages.append(Message("tool", _text(item["output"]), name=names.get(call), tool_call_id=call))
    return tuple(messages + turn.message())


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)


def _thoughts(item: dict[str, Any]) -> str:
    # What was thought, or else what was told of it.
    return _text(item.get("content") or item.get("summary") or [])
