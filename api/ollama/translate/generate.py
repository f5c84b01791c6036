"""Single prompts: `POST /api/generate`."""

from __future__ import annotations

from typing import Any

from api.ollama.schemas import GenerateBody
from api.ollama.translate import context
from api.ollama.translate.answer import DONE, Head, counts, cut_off, logprobs
from api.ollama.translate.lines import LineWriter
from api.ollama.translate.wishes import limits, output, sampling, template_options
from tasks.events import Choice, Event, Finished, Reply, TextDelta
from tasks.requests import ChatRequest, CompletionRequest, Message


def turns(body: GenerateBody) -> tuple[context.Turn, ...]:
    """The conversation up to the answer. A system prompt stands first, and instead of one in the `context`."""
    before = context.decode(body.context)
    if body.system:
        before = (("system", body.system), *(turn for turn in before if turn[0] != "system"))
    return (*before, ("user", body.prompt))


def to_chat(body: GenerateBody, before: tuple[context.Turn, ...]) -> ChatRequest:
    """The prompt as the last turn of a conversation, for a model with a chat template."""
    return ChatRequest(
        messages=tuple(Message(role, text) for role, text in before),
        sampling=sampling(body.options),
        stop=body.options.stop,
        template_options=template_options(body.think),
        template=body.template or None,
        output=output(body.format),
        **limits(body),
    )


def to_completion(body: GenerateBody) -> CompletionRequest:
    """The prompt as it is, and what follows behind the gap."""
    return CompletionRequest(
        prompts=(body.prompt,),
        suffix=body.suffix,
        sampling=sampling(body.options),
        stop=body.options.stop,
        output=output(body.format),
        **limits(body),
    )


def loaded(head: Head, reason: str) -> dict[str, Any]:
    """The answer to a request that only loads or unloads."""
    return head.fields() | {"response": "", "done": True, "done_reason": reason}


def _context(head: Head, text: str) -> dict[str, Any]:
    return {} if head.before is None else {"context": context.encode((*head.before, ("assistant", text)))}


class GenerateWriter(LineWriter):
    """Writes the lines of `/api/generate`."""

    kind = "generate"

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._said: list[str] = []

    def event(self, event: Event) -> bytes:
        if self.head.before is not None and isinstance(event, TextDelta):
            self._said.append(event.text)
        return super().event(event)

    def whole(self, reply: Reply, end: Finished) -> dict[str, Any]:
        choice = reply.choices.get(0, Choice())
        text = choice.text + "".join(map(cut_off, choice.tool_calls))
        fields: dict[str, Any] = {"response": text}
        if choice.reasoning:
            fields["thinking"] = choice.reasoning
        if choice.logprobs:
            fields["logprobs"] = logprobs(choice.logprobs)
        done = {"done": True, "done_reason": DONE[choice.reason or end.reason]}
        return self.head.fields() | fields | done | _context(self.head, text) | counts(end)

    def said(self, text: str) -> dict[str, Any]:
        return {"response": text}

    def thought(self, text: str) -> dict[str, Any]:
        return {"response": "", "thinking": text}

    def called(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"response": "", "tool_calls": calls}

    def last(self) -> dict[str, Any]:
        return self.said("") | _context(self.head, "".join(self._said))
