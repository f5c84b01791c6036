"""An answer as an Anthropic message: its head, why it ended, what it cost, and the whole of it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from api.anthropic.translate.prompt import CALL_ID
from tasks.events import Choice, Finished, FinishReason, Reply, Usage, WholeCall

MESSAGE_ID = "msg_"

REASONS: dict[FinishReason, str] = {
    FinishReason.STOP: "end_turn",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.LENGTH: "max_tokens",
    # Never said: an answer that was cancelled ends in an error.
    FinishReason.CANCELLED: "end_turn",
}

Thoughts = Literal["shown", "sealed", "hidden"]
"""What a client gets of the model's thoughts: all, that there were some, or nothing."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an answer before it begins. `stop` are the sequences its client named."""

    id: str
    model: str
    stop: tuple[str, ...]
    thoughts: Thoughts

    def message(self) -> dict[str, Any]:
        """The message before anything was said."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(Usage(0, 0)),
        }

    def ending(self, reason: FinishReason, stop_sequence: str | None) -> dict[str, Any]:
        """Why it ended. Sequences of the model's own end its turn; only the client's are told."""
        if reason is FinishReason.STOP and stop_sequence in self.stop:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop_sequence}
        return {"stop_reason": REASONS[reason], "stop_sequence": None}


def usage(counts: Usage) -> dict[str, Any]:
    """Tokens as Anthropic counts them: those that were in the cache are no part of `input_tokens`."""
    return {
        "input_tokens": counts.prompt_tokens - counts.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached_tokens,
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"thinking_tokens": counts.reasoning_tokens},
        "service_tier": "standard",
    }


def seal(digest: hashlib._Hash) -> str:
    """The signature of thoughts: a digest of them. Clients send it back with the thoughts, and nobody looks at it."""
    return base64.b64encode(digest.digest()).decode()


def whole(head: Head, reply: Reply, end: Finished) -> dict[str, Any]:
    """The answer to a client that did not ask for a stream."""
    choice = reply.choices.get(0, Choice())
    content: list[dict[str, Any]] = []
    if choice.reasoning and head.thoughts != "hidden":
        shown = choice.reasoning if head.thoughts == "shown" else ""
        signature = seal(hashlib.sha256(choice.reasoning.encode()))
        content.append({"type": "thinking", "thinking": shown, "signature": signature})
    if choice.text:
        content.append({"type": "text", "text": choice.text})
    content += [_call(call) for call in choice.tool_calls]
    ending = head.ending(choice.reason or end.reason, choice.stop_sequence)
    return head.message() | {"content": content, **ending, "usage": usage(end.usage)}


def _call(call: WholeCall) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        # The answer ended in the middle of it. Half a call is none, but what was said is not lost.
        return {"type": "text", "text": f"{call.name} {call.arguments}"}
    return {"type": "tool_use", "id": CALL_ID + call.id, "name": call.name, "input": arguments}
