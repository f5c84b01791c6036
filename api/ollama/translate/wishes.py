"""How an answer is wanted: sampling, limits, format, thinking, in the shared vocabulary."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from api.ollama.options import OllamaOptions
from api.ollama.schemas import GenerationBody
from tasks.requests import JsonObject, JsonSchema, OutputFormat, SamplingOptions

MOST_TOKENS = 2**31 - 1
"""More than any context holds; a larger wish is the same wish."""


def sampling(options: OllamaOptions) -> SamplingOptions:
    """What the options say about sampling; what they leave out stays with the model's own default."""
    return SamplingOptions(
        temperature=options.temperature,
        # -1 is how some clients say what 0 says here: no limit.
        top_k=None if options.top_k is None else max(0, options.top_k),
        top_p=options.top_p,
        min_p=options.min_p,
        typical_p=options.typical_p,
        repeat_penalty=options.repeat_penalty,
        repeat_last_n=options.repeat_last_n,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        mirostat=options.mirostat,
        mirostat_tau=options.mirostat_tau,
        mirostat_eta=options.mirostat_eta,
        # -1 asks for a different answer each time, which is what no seed means.
        seed=None if options.seed == -1 else options.seed,
    )


class Limits(TypedDict):
    """Fields that both kinds of generation have."""

    max_tokens: int | None
    logprobs: int | None
    overflow: Literal["refuse", "truncate"]
    context_limit: int | None


def limits(body: GenerationBody) -> Limits:
    """How far it may go, and what is told of each token."""
    most = body.options.num_predict
    return {
        # 0 and below are how Ollama says: until the model ends or the context is full.
        "max_tokens": None if most is None or most < 1 else min(most, MOST_TOKENS),
        "logprobs": body.top_logprobs if body.logprobs else None,
        "overflow": "truncate" if body.truncate else "refuse",
        "context_limit": body.options.num_ctx,
    }


def output(wish: str | dict[str, Any] | None) -> OutputFormat | None:
    """What `format` asks for."""
    if isinstance(wish, dict):
        return JsonSchema(wish) if wish else None
    return JsonObject() if wish == "json" else None


def template_options(think: bool | str | None) -> dict[str, Any]:
    """What `think` says to the chat template."""
    if think is None:
        return {}
    if isinstance(think, str):
        return {"enable_thinking": True, "reasoning_effort": think}
    return {"enable_thinking": think}
