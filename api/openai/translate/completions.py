"""Plain completions: `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

from api.openai.format_schemas import output_of
from api.openai.schemas import CompletionBody
from api.openai.translate.answer import FINISH, MARK, Best, Head, around, timings, usage
from api.openai.translate.chunks import ChunkWriter
from api.openai.translate.logprobs import of_completion
from api.openai.translate.sampling import at_most, to_sampling
from tasks.events import Choice, Finished, FinishReason, Reply, TokenLogprob
from tasks.requests import CompletionRequest


def to_request(body: CompletionBody) -> CompletionRequest:
    """What the body asks for, in the shared vocabulary."""
    best = best_of(body)
    return CompletionRequest(
        prompts=body.prompt,
        sampling=to_sampling(body),
        max_tokens=at_most(body.max_tokens),
        stop=body.stop,
        n=best.made if best is not None else body.n,
        echo=body.echo,
        suffix=body.suffix,
        output=output_of(body),
        logprobs=0 if best is not None and body.logprobs is None else body.logprobs,
    )


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer to a client that did not ask for a stream."""
    told = range(head.choices) if head.best is None else _likeliest(reply, head.best)
    choices = [_choice(index, reply.choices.get(made, Choice()), end) for index, made in enumerate(told)]
    if head.best is not None and not head.best.logged:
        choices = [choice | {"logprobs": None} for choice in choices]
    return head.fields("text_completion") | {"choices": choices, "usage": usage(end.usage), "timings": timings(end)}


def best_of(body: CompletionBody) -> Best | None:
    """What is to be chosen from, where the body asks for a choice."""
    if body.best_of is None or body.best_of <= body.n:
        return None
    return Best(body.best_of, body.n, body.logprobs is not None)


def _likeliest(reply: Reply, best: Best) -> Iterator[int]:
    """The answers with the highest mean log probability of a token: those of each prompt in turn, the best first."""
    for first in range(0, len(reply.choices), best.made):
        made = range(first, first + best.made)
        yield from sorted(made, key=lambda index: -_mean(reply.choices.get(index, Choice())))[: best.told]


def _mean(choice: Choice) -> float:
    return sum(each.logprob for each in choice.logprobs) / len(choice.logprobs) if choice.logprobs else -inf


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
