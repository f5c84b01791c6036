"""Chats: `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any, Literal

from api.openai.format_schemas import output_of
from api.openai.schemas import ChatCompletionBody, ChatMessage
from api.openai.translate.answer import FINISH, MARK, Head, around, frame, timings, usage
from api.openai.translate.chunks import ChunkWriter
from api.openai.translate.logprobs import of_chat
from api.openai.translate.sampling import at_most, to_sampling
from api.openai.translate.tools import calls_of, choice_of, legacy, tools_of
from tasks.events import Choice, Finished, FinishReason, Reply, TokenLogprob
from tasks.requests import ChatRequest, Message

ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def to_request(body: ChatCompletionBody) -> ChatRequest:
    """What the body asks for, in the shared vocabulary."""
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    tools = tools_of(body)
    return ChatRequest(
        messages=tuple(_message(message) for message in body.messages),
        sampling=to_sampling(body),
        max_tokens=at_most(limit),
        stop=body.stop,
        n=body.n,
        template_options=_template_options(body),
        continue_last=body.continue_final_message,
        tools=tools,
        tool_choice=choice_of(body, tools),
        # Before there were tools, an answer had one call.
        parallel_tool_calls=not tools or (body.parallel_tool_calls and not legacy(body)),
        thinking_budget=_budget(body),
        output=output_of(body),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _message(message: ChatMessage) -> Message:
    return Message(
        role=ROLES[message.role],
        content=message.text(),
        name=message.name,
        reasoning=message.reasoning_content or message.reasoning,
        tool_calls=calls_of(message),
        tool_call_id=message.tool_call_id,
    )


def _budget(body: ChatCompletionBody) -> int | None:
    budget = body.thinking_budget_tokens
    if budget is None and body.reasoning is not None:
        budget = body.reasoning.max_tokens
    return None if budget is None or budget < 0 else at_most(budget)


def _template_options(body: ChatCompletionBody) -> dict[str, Any]:
    options: dict[str, Any] = {}
    effort = body.reasoning_effort or (body.reasoning.effort if body.reasoning else None)
    if effort is not None:
        options["enable_thinking"] = effort not in ("none", "minimal")
        if options["enable_thinking"]:
            options["reasoning_effort"] = effort
    if body.think is not None:
        options["enable_thinking"] = body.think
    # What a client says in the template's own words is the most exact, and so the last word.
    return options | (body.chat_template_kwargs or {})


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer to a client that did not ask for a stream."""
    choices = [_choice(index, reply.choices.get(index, Choice()), end, head.functions) for index in range(head.choices)]
    return head.fields("chat.completion") | {"choices": choices, "usage": usage(end.usage), "timings": timings(end)}


def _choice(index: int, choice: Choice, end: Finished, functions: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
    if choice.tool_calls:
        message["content"] = choice.text or None
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
        message |= {"function_call": calls[0]["function"]} if functions else {"tool_calls": calls}
    if choice.reasoning:
        message |= {"reasoning_content": choice.reasoning, "reasoning": choice.reasoning}
    reason = finish(choice.reason or end.reason, functions)
    return {"index": index, "message": message, "logprobs": of_chat(choice.logprobs), "finish_reason": reason}


def finish(reason: FinishReason, functions: bool) -> str:
    """Why it ended, for a client that speaks of `functions` in the words of before there were tools."""
    return "function_call" if functions and reason is FinishReason.TOOL_CALLS else FINISH[reason]


class ChatWriter(ChunkWriter):
    """Writes `chat.completion.chunk` objects."""

    kind = "chat.completion.chunk"

    def opening(self, choice: int) -> bytes:
        return frame(self._with(choice, {"role": "assistant", "content": ""}))

    def around_delta(self, choice: int, thought: bool) -> list[bytes]:
        if thought:
            # Some clients read the one name, some the other.
            return around(self._with(choice, {"reasoning_content": MARK, "reasoning": MARK}), texts=2)
        return around(self._with(choice, {"content": MARK}))

    def logged(self, choice: int, text: str, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        delta = {"content": text}
        return {"index": choice, "delta": delta, "logprobs": of_chat(logprobs), "finish_reason": None}

    def tool_call(self, choice: int, call: dict[str, Any]) -> bytes:
        delta = {"function_call": call["function"]} if self.head.functions else {"tool_calls": [call]}
        return frame(self._with(choice, delta))

    def closing(self, choice: int, reason: FinishReason) -> dict[str, Any]:
        return {"index": choice, "delta": {}, "logprobs": None, "finish_reason": finish(reason, self.head.functions)}

    def _with(self, choice: int, delta: dict[str, Any]) -> dict[str, Any]:
        return self.chunk({"index": choice, "delta": delta, "logprobs": None, "finish_reason": None})
