"""What makes up a prompt, in the shared vocabulary: turns, tools, and how the model should think."""

from __future__ import annotations

from typing import Any

import msgspec

from api.anthropic.refusals import SERVED_TOOLS
from api.anthropic.schemas import Block, CountBody, MessagesBody, ToolBody, TurnBody, text_of
from api.errors import invalid, unsupported
from tasks.requests import ChatRequest, JsonSchema, Message, SamplingOptions, Tool, ToolCall, ToolChoice

CALL_ID = "toolu_"
"""Begins the id of every call on this wire. The rest is the call's own id, which a model's template may care about."""

BILLING = "x-anthropic-billing-header:"
"""Begins a block of the system prompt that Claude Code sends for its maker's accounts."""

MOST_TOKENS = 2**31 - 1
"""More than any context holds; a larger wish is the same wish."""


def to_request(body: CountBody) -> ChatRequest:
    """What the body asks for. Raises `HttpProblem`."""
    tools = _tools(body.tools)
    schema = body.output_format or (body.output_config and body.output_config.format)
    thinking = body.thinking
    request = ChatRequest(
        messages=_messages(body),
        template_options=_template_options(body),
        tools=tools,
        tool_choice=_tool_choice(body, tools),
        parallel_tool_calls=not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
        output=JsonSchema(schema.format_schema) if schema else None,
        thinking_budget=thinking.budget_tokens if thinking and thinking.type == "enabled" else None,
        continue_last=body.messages[-1].role == "assistant",
    )
    if not isinstance(body, MessagesBody):
        return request
    sampling = SamplingOptions(
        temperature=body.temperature,
        top_p=body.top_p,
        # -1 is how some clients say what 0 says here: no limit.
        top_k=None if body.top_k is None else max(0, body.top_k),
    )
    return msgspec.structs.replace(
        request,
        sampling=sampling,
        max_tokens=min(body.max_tokens, MOST_TOKENS),
        # An empty sequence would end every answer before it begins; clients send one to mean none.
        stop=tuple(word for word in body.stop_sequences if word),
    )


def _template_options(body: CountBody) -> dict[str, Any]:
    # In this dialect a model thinks only where it was told to.
    wanted = body.thinking is not None and body.thinking.type != "disabled"
    options: dict[str, Any] = {"enable_thinking": wanted}
    if wanted and body.output_config is not None and body.output_config.effort is not None:
        options["reasoning_effort"] = body.output_config.effort
    return options


def _tools(bodies: list[ToolBody]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for body in bodies:
        if body.type in (None, "custom"):
            tools.append(Tool(body.name, body.description, body.input_schema, body.strict))
        elif not body.type.startswith(SERVED_TOOLS):
            raise unsupported(
                "tools",
                f"Tools of type '{body.type[:40]}' are not supported: the models here were not taught them. Describe the tool "
                "'" + body.name[:60] + "' with an 'input_schema', and without a 'type'.",
            )
    return tuple(tools)


def _tool_choice(body: CountBody, tools: tuple[Tool, ...]) -> ToolChoice:
    choice = body.tool_choice
    if choice is None or choice.type == "auto":
        return ToolChoice()
    if choice.type == "none":
        return ToolChoice("none")
    known = {tool.name for tool in tools}
    if not known or (choice.name is not None and choice.name not in known):
        raise invalid(
            "The tool that should be called is none of 'tools'; those that Anthropic's own servers run are not offered here.",
            "tool_choice",
        )
    return ToolChoice("required", (choice.name,) if choice.type == "tool" and choice.name else ())


def _messages(body: CountBody) -> tuple[Message, ...]:
    messages: list[Message] = []
    system = text_of(_without_billing(body.system))
    if system:
        messages.append(Message("system", system))
    names: dict[str, str] = {}
    for turn in body.messages:
        for message in _said(turn, names):
            if message.role == "system" and messages and messages[-1].role != "system":
                # Templates take a system message at the beginning only.
                message = Message("user", message.content)
            _add(messages, message)
    return tuple(messages)


def _without_billing(system: str | list[Block]) -> str | list[Block]:
    """The same without the block that is meant for the bill: it differs each time, so nothing behind it would be reused."""
    if isinstance(system, str):
        return system
    return [block for block in system if not (block.text or "").startswith(BILLING)]


def _add(messages: list[Message], message: Message) -> None:
    """Turns of one role that follow each other are one turn: so the dialect means them, and some templates refuse them."""
    last = messages[-1] if messages else None
    if last is None or last.role != message.role or message.role == "tool":
        messages.append(message)
        return
    gap = "" if message.role == "assistant" or not last.content or not message.content else "\n"
    messages[-1] = msgspec.structs.replace(
        last,
        content=last.content + gap + message.content,
        reasoning=(last.reasoning or "") + (message.reasoning or "") or None,
        tool_calls=last.tool_calls + message.tool_calls,
    )


def _said(turn: TurnBody, names: dict[str, str]) -> list[Message]:
    """What one turn says; `names` are those of the tools by the ids of their calls."""
    if turn.role == "assistant":
        return [_answer(turn.blocks(), names)]
    messages: list[Message] = []
    for block in turn.blocks():
        if block.type == "tool_result":
            call = (block.tool_use_id or "").removeprefix(CALL_ID)
            messages.append(Message("tool", block.result(), name=names.get(call), tool_call_id=call))
        else:
            _add(messages, Message("system" if turn.role == "system" else "user", block.text or ""))
    return messages or [Message("user", "")]


def _answer(blocks: list[Block], names: dict[str, str]) -> Message:
    calls: list[ToolCall] = []
    for block in blocks:
        if block.type == "tool_use":
            id, name = (block.id or "").removeprefix(CALL_ID), block.name or ""
            names[id] = name
            calls.append(ToolCall(id, name, msgspec.json.encode(block.input or {}).decode()))
    return Message(
        "assistant",
        "".join(block.text or "" for block in blocks if block.type == "text"),
        reasoning="".join(block.thinking or "" for block in blocks if block.type == "thinking") or None,
        tool_calls=tuple(calls),
    )
