"""Plain completions: `POST /v1/completions`."""

from __future__ import annotations

from typing import Any

from api.openai.schemas import CompletionBody
from api.openai.translate.answer import FINISH, MARK, Head, around, timings, usage
from api.openai.translate.chunks import ChunkWriter
from api.openai.translate.sampling import at_most, to_sampling
from tasks.events import Choice, Finished, FinishReason, Reply
from tasks.requests import CompletionRequest


def to_request(body: CompletionBody) -> CompletionRequest:
    """What the body asks for, in the shared vocabulary."""
    return CompletionRequest(
        prompts=body.prompt,
        sampling=to_sampling(body),
        max_tokens=at_most(body.max_tokens),
        stop=body.stop,
        n=body.n,
        echo=body.echo,
    )


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer to a client that did not ask for a stream."""
    choices = [_choice(index, reply.choices.get(index, Choice()), end) for index in range(head.choices)]
    return head.fields("text_completion") | {"choices": choices, "usage": usage(end.usage), "timings": timings(end)}


def _choice(index: int, choice: Choice, end: Finished) -> dict[str, Any]:
    # This endpoint has no place for thinking apart from the text, and a raw prompt no template that asks for any.
    text = choice.reasoning + choice.text
    return {"index": index, "text": text, "logprobs": None, "finish_reason": FINISH[choice.reason or end.reason]}


class CompletionWriter(ChunkWriter):
    """Writes `text_completion` chunks."""

    kind = "text_completion"

    def opening(self, choice: int) -> bytes:
        return b""

    def around_delta(self, choice: int, thought: bool) -> list[bytes]:
        return around(self.chunk({"index": choice, "text": MARK, "logprobs": None, "finish_reason": None}))

    def closing(self, choice: int, reason: FinishReason) -> dict[str, Any]:
        return {"index": choice, "text": "", "logprobs": None, "finish_reason": FINISH[reason]}
