"""The tools of a response: as the model sees them, and back again as the client named them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from api.errors import invalid
from api.openai.responses.schemas import ItemToolOffer
from tasks.requests import Tool, ToolChoice

FREE_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""The arguments of a tool that takes any text: models know functions only."""


class Caller(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the client calls a tool whose name the model is told otherwise, or that takes free text."""

    name: str
    namespace: str | None = None
    custom: bool = False


class Offer(msgspec.Struct, frozen=True):
    """The tools that the model is given; those among them that it knows otherwise, by the name it knows; and all as the client
    wrote them."""

    tools: tuple[Tool, ...]
    callers: dict[str, Caller]
    shown: list[dict[str, Any]]


def seen_name(name: str, namespace: str | None) -> str:
    """What a model is told that a tool is called."""
    return f"{namespace}__{name}" if namespace else name


def offer(tools: Sequence[ItemToolOffer]) -> Offer:
    """What can be offered of these. Tools that a server would run itself are left out. Raises `HttpProblem`."""
    offered: list[Tool] = []
    callers: dict[str, Caller] = {}
    shown: list[dict[str, Any]] = []
    for tool in tools:
        inside = tool.tools if tool.type == "namespace" else [tool]
        kept = [each for each in inside if each.type in ("function", "custom")]
        namespace = tool.name if tool.type == "namespace" else None
        for each in kept:
            assert each.name is not None
            made = _tool(each, seen_name(each.name, namespace))
            offered.append(made)
            if namespace or each.type == "custom":
                callers[made.name] = Caller(each.name, namespace, each.type == "custom")
        if kept and tool.type == "namespace":
            shown.append(
                {"type": "namespace", "name": tool.name, "description": tool.description}
                | {"tools": [_shown(each) for each in kept]}
            )
        elif kept:
            shown.append(_shown(tool))
    names = [tool.name for tool in offered]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise invalid(f"Invalid 'tools': two of them are called '{twice}'.", "tools")
    return Offer(tuple(offered), callers, shown)


def _tool(tool: ItemToolOffer, name: str) -> Tool:
    if tool.type == "function":
        return Tool(name, tool.description, tool.parameters, strict=bool(tool.strict))
    description = tool.description
    form = tool.format or {}
    if form.get("type") == "grammar":
        # Not held to: a grammar of what stands inside a string of JSON is another grammar.
        description += f"\n\nThe input follows this grammar ({form.get('syntax')}):\n{form.get('definition')}"
    return Tool(name, description.strip(), FREE_INPUT)


def _shown(tool: ItemToolOffer) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": tool.type, "name": tool.name, "description": tool.description or None}
    if tool.type == "function":
        return fields | {"parameters": tool.parameters, "strict": bool(tool.strict)}
    return fields | {"format": tool.format or {"type": "text"}}


def choice(asked: dict[str, Any], offered: Offer) -> ToolChoice:
    """Whether tools may or must be called, and which. Raises `HttpProblem`."""
    match asked:
        case {"type": "none"}:
            return ToolChoice("none")
        case {"type": "auto"}:
            return ToolChoice("auto")
        case {"type": "required"}:
            _named((), offered)
            return ToolChoice("required")
        case {"type": "function" | "custom"}:
            return ToolChoice("required", _named([asked], offered))
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(tools)}:
            # Of those a server would run, none can be called here, as with `tools`.
            ours = [each for each in tools if isinstance(each, dict) and each.get("type") in ("function", "custom")]
            if not ours and mode == "auto":
                return ToolChoice("none")
            return ToolChoice(mode, _named(ours, offered, some=True))
    raise invalid(
        f"Invalid 'tool_choice': nothing of type '{asked['type'][:40]}' can be called here; it should be 'none', 'auto', "
        "'required', or name a function.",
        "tool_choice",
    )


def _named(asked: Sequence[dict[str, Any]], offered: Offer, *, some: bool = False) -> tuple[str, ...]:
    """The names of tools that a choice allows, as the model knows them."""
    if not offered.tools or (some and not asked):
        raise invalid("Invalid 'tool_choice': there is no tool to call in 'tools'.", "tool_choice")
    known = {tool.name for tool in offered.tools}
    names = []
    for each in asked:
        name, namespace = each.get("name"), each.get("namespace")
        seen = seen_name(str(name), namespace if isinstance(namespace, str) else None)
        if seen not in known:
            raise invalid(f"Invalid 'tool_choice': no tool in 'tools' is called '{str(name)[:100]}'.", "tool_choice")
        names.append(seen)
    return tuple(dict.fromkeys(names))


def free_input(arguments: str) -> str:
    """The text that a model gave to a tool that takes any."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments  # cut off, perhaps
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def arguments_of(text: str) -> str:
    """The same the other way round, for a call in the conversation's past."""
    return json.dumps({"input": text}, ensure_ascii=False)
