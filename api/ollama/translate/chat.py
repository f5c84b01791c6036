"""Chats: `POST /api/chat`."""

from __future__ import annotations

from typing import Any

import msgspec

from api.ollama.schemas import ChatBody, OllamaMessage
from api.ollama.translate.answer import DONE, Head, call, counts, cut_off, logprobs
from api.ollama.translate.lines import LineWriter
from api.ollama.translate.wishes import limits, output, sampling, template_options
from tasks.events import Choice, Finished, Reply
from tasks.requests import ChatRequest, Message, Tool, ToolCall


def to_request(body: ChatBody) -> ChatRequest:
    """What the body asks for, in the shared vocabulary."""
    return ChatRequest(
        messages=_messages(body.messages),
        sampling=sampling(body.options),
        stop=body.options.stop,
        template_options=template_options(body.think),
        tools=tuple(
            Tool(tool.function.name, tool.function.description, tool.function.parameters) for tool in body.tools
        ),
        output=output(body.format),
        **limits(body),
    )


def _messages(messages: list[OllamaMessage]) -> tuple[Message, ...]:
    """The turns. Results name their call where the client did; else they answer the calls in the order of these."""
    open_calls: list[ToolCall] = []
    turns: list[Message] = []
    for index, message in enumerate(messages):
        calls = tuple(
            ToolCall(
                each.id or f"call_{index}_{number}",
                each.function.name,
                msgspec.json.encode(each.function.arguments).decode(),
            )
            for number, each in enumerate(message.tool_calls)
        )
        if message.role == "assistant":
            open_calls = list(calls)
        answered = _answered(message, open_calls) if message.role == "tool" else None
        turns.append(
            Message(
                role=message.role,
                content=message.content,
                name=message.tool_name or (answered.name if answered is not None else None),
                reasoning=message.thinking,
                tool_calls=calls,
                tool_call_id=message.tool_call_id or (answered.id if answered is not None else None),
            )
        )
    return tuple(turns)


def _answered(message: OllamaMessage, open_calls: list[ToolCall]) -> ToolCall | None:
    """The call that a result is of, taken off those still open."""
    for each in open_calls:
        if message.tool_call_id in (None, each.id) and message.tool_name in (None, each.name):
            open_calls.remove(each)
            return each
    return None


def loaded(head: Head, reason: str) -> dict[str, Any]:
    """The answer to a request that only loads or unloads."""
    return head.fields() | {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason}


class ChatWriter(LineWriter):
    """Writes the lines of `/api/chat`."""

    kind = "chat"

    def whole(self, reply: Reply, end: Finished) -> dict[str, Any]:
        choice = reply.choices.get(0, Choice())
        text = choice.text
        calls: list[dict[str, Any]] = []
        for each in choice.tool_calls:
            made = call(len(calls), each)
            if made is None:
                text += cut_off(each)
            else:
                calls.append(made)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if choice.reasoning:
            message["thinking"] = choice.reasoning
        if calls:
            message["tool_calls"] = calls
        rest = {"logprobs": logprobs(choice.logprobs)} if choice.logprobs else {}
        done = {"done": True, "done_reason": DONE[choice.reason or end.reason]}
        return self.head.fields() | {"message": message} | rest | done | counts(end)

    def said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def thought(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": "", "thinking": text}}

    def called(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": "", "tool_calls": calls}}
