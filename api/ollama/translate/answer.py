"""What every Ollama answer carries, streamed or whole: its head, why it ended, counts, durations, calls, log probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from tasks.events import Finished, FinishReason, TokenLogprob, WholeCall

DONE: dict[FinishReason, str] = {
    FinishReason.STOP: "stop",
    FinishReason.TOOL_CALLS: "stop",
    FinishReason.LENGTH: "length",
    # Only ever seen of one choice among several, of which there are none here.
    FinishReason.CANCELLED: "stop",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What is the same in every line of an answer. `created` is when its job was accepted.

    `before` is the conversation up to the answer, where the answer is to tell a `context` (see `translate/context.py`).
    """

    model: str
    created: str
    before: tuple[tuple[str, str], ...] | None = None

    def fields(self) -> dict[str, Any]:
        """The leading fields of a line."""
        return {"model": self.model, "created_at": self.created}


def now() -> str:
    """This moment, as Ollama writes times."""
    return moment(datetime.now(UTC))


def moment(time: datetime) -> str:
    """A time as Ollama writes it."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def counts(end: Finished) -> dict[str, int]:
    """What it cost: tokens, and nanoseconds that add up. `queue_duration` and `prompt_truncated_count` are none of Ollama's.

    A duration is never 0: Ollama leaves such fields out, and clients divide by them.
    """
    times = end.timings
    load, queue, prompt, answer = map(_nanoseconds, (times.load_ms, times.queued_ms, times.prefill_ms, times.decode_ms))
    return {
        "total_duration": load + queue + prompt + answer,
        "load_duration": load,
        "queue_duration": queue,
        "prompt_eval_count": end.usage.prompt_tokens,
        "prompt_eval_duration": prompt,
        "eval_count": end.usage.completion_tokens,
        "eval_duration": answer,
    } | ({"prompt_truncated_count": end.usage.left_out} if end.usage.left_out else {})


def _nanoseconds(ms: float) -> int:
    return max(1, round(ms * 1e6))


def call(index: int, whole: WholeCall) -> dict[str, Any] | None:
    """A call as Ollama says it, its arguments an object; None when they are none, as where the answer was cut off."""
    try:
        arguments = msgspec.json.decode(whole.arguments or "{}")
    except msgspec.DecodeError:
        return None
    if not isinstance(arguments, dict):
        return None
    return {"id": whole.id, "function": {"index": index, "name": whole.name, "arguments": arguments}}


def cut_off(whole: WholeCall) -> str:
    """What was said of a call that never became one, as text: it is not lost."""
    return f'{{"name": {msgspec.json.encode(whole.name).decode()}, "arguments": {whole.arguments}'


def logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """The tokens with their log probabilities, and the likeliest ones at their place."""
    return [
        _token(each.token, each.logprob)
        | ({"top_logprobs": [_token(token, value) for token, value in each.top]} if each.top else {})
        for each in tokens
    ]


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}
