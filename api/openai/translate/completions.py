"""Plain completions: `POST /v1/completions`."""

from __future__ import annotations

from typing import Any

from api.openai.format_schemas import output_of
from api.openai.schemas import CompletionBody
from api.openai.translate.answer import FINISH, MARK, Head, around, timings, usage
from api.openai.translate.chunks import ChunkWriter
from api.openai.translate.logprobs import of_completion
from api.openai.translate.sampling import at_most, to_sampling
from tasks.events import Choice, Finished, FinishReason, Reply, TokenLogprob
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
        output=output_of(body),
        logprobs=body.logprobs,
    )


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer to a client that did not ask for a stream."""
    choices = [_choice(index, reply.choices.get(index, Choice()), end) for index in range(head.choices)]
    return head.fields("text_completion") | {"choices": choices, "usage": usage(end.usage), "timings": timings(end)}


def _choice(index: int, choice: Choice, end: Finished) -> dict[str, Any]:
    # This endpoint has no place for thinking apart from the text, and a raw prompt no template that asks for any.
    text = choice.reasoning + choice.text
    logprobs = of_completion(choice.logprobs, 0)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": FINISH[choice.reason or end.reason]}


class CompletionWriter(ChunkWriter):
    """Writes `text_completion` chunks."""

    kind = "text_completion"

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._offsets: dict[int, int] = {}
        """Of each choice the characters whose log probabilities were told."""

    def logged(self, choice: int, text: str, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        offset = self._offsets.get(choice, 0)
        self._offsets[choice] = offset + len(text)
        return {"index": choice, "text": text, "logprobs": of_completion(logprobs, offset), "finish_reason": None}

    def opening(self, choice: int) -> bytes:
        return b""

    def around_delta(self, choice: int, thought: bool) -> list[bytes]:
        return around(self.chunk({"index": choice, "text": MARK, "logprobs": None, "finish_reason": None}))

    def closing(self, choice: int, reason: FinishReason) -> dict[str, Any]:
        return {"index": choice, "text": "", "logprobs": None, "finish_reason": FINISH[reason]}
