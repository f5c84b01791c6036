"""What every OpenAI answer carries, streamed or whole: its head, finish reasons, usage, timings, and frames."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from api.errors import Problem
from api.openai.problems import render
from tasks.events import Finished, FinishReason, Timings, Usage

DONE = b"data: [DONE]\n\n"

FINISH: dict[FinishReason, str] = {
    FinishReason.STOP: "stop",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.LENGTH: "length",
    # Only ever seen of one choice among several; an answer that was cancelled as a whole ends in an error.
    FinishReason.CANCELLED: "stop",
}


@dataclass(frozen=True, slots=True)
class Best:
    """Of `made` answers to each prompt the likeliest `told` are told, `logged` with their log probabilities."""

    made: int
    told: int
    logged: bool


@dataclass(frozen=True, slots=True)
class Head:
    """What is the same in every chunk of an answer. `choices` is how many there will be; `functions` says that its client
    speaks of functions, and not of tools."""

    id: str
    created: int
    model: str
    fingerprint: str
    tier: str
    choices: int
    include_usage: bool
    functions: bool = False
    best: Best | None = None
    """Where more answers were made than are told."""

    def fields(self, kind: str) -> dict[str, Any]:
        """The leading fields of an object of that kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "service_tier": self.tier,
        }


@lru_cache(maxsize=256)
def fingerprint(*parts: str) -> str:
    """The same for as long as the same weights run on the same engine."""
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def usage(counts: Usage) -> dict[str, Any]:
    """Tokens as OpenAI counts them, with every detail object that clients reach into."""
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": counts.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def timings(end: Finished) -> dict[str, Any]:
    """Where the time went, in the words of llama.cpp's server, and how long the job waited before."""
    counts, times = end.usage, end.timings
    prompt_n = counts.prompt_tokens - counts.cached_tokens
    return {
        "cache_n": counts.cached_tokens,
        "prompt_n": prompt_n,
        **_rates("prompt", prompt_n, times.prefill_ms),
        "predicted_n": counts.completion_tokens,
        **_rates("predicted", counts.completion_tokens, times.decode_ms),
        **_waits(times),
    }


def _rates(what: str, tokens: int, ms: float) -> dict[str, float]:
    return {
        f"{what}_ms": round(ms, 3),
        f"{what}_per_token_ms": round(ms / tokens, 3) if tokens else 0.0,
        f"{what}_per_second": round(tokens / ms * 1000, 3) if ms > 0 else 0.0,
    }


def _waits(times: Timings) -> dict[str, float]:
    told = {"memory_mb": times.memory_mb} if times.memory_mb else {}
    return {"queued_ms": round(times.queued_ms, 3), "load_ms": round(times.load_ms, 3), **told}


def frame(value: dict[str, Any]) -> bytes:
    """An object as one frame. For the few frames of an answer, not for each of its tokens."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def error_frame(problem: Problem) -> bytes:
    """The frame that ends a stream which cannot go on; no [DONE] follows it."""
    return b"data: " + render(problem) + b"\n\n"


MARK = "\ue000"
"""Stands for the text of a delta while its frame is made."""


def around(value: dict[str, Any], texts: int = 1) -> list[bytes]:
    """The frame for `value`, cut where `MARK` stands as its last `texts` strings; a text's JSON joins it again."""
    # From the right: the model's name stands before the texts, and a client chose it.
    return frame(value).rsplit(msgspec.json.encode(MARK), texts)
