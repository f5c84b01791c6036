"""The sampling fields of a body in the shared vocabulary."""

from __future__ import annotations

from api.openai.schemas import SamplingBody
from tasks.requests import SamplingOptions

MOST_TOKENS = 2**31 - 1
"""More than any context holds; a larger wish is the same wish."""


def to_sampling(body: SamplingBody) -> SamplingOptions:
    """What the body says about sampling; what it leaves out stays with the model's own default."""
    return SamplingOptions(
        temperature=body.temperature,
        # -1 is how some clients say what 0 says here: no limit.
        top_k=None if body.top_k is None else max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repeat_penalty=body.repeat_penalty if body.repeat_penalty is not None else body.repetition_penalty,
        repeat_last_n=body.repeat_last_n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        mirostat=body.mirostat,
        mirostat_tau=body.mirostat_tau,
        mirostat_eta=body.mirostat_eta,
        # -1 asks for a different answer each time, which is what no seed means.
        seed=None if body.seed == -1 else body.seed,
        logit_bias=body.logit_bias or None,
        ignore_eos=body.ignore_eos,
    )


def at_most(tokens: int | None) -> int | None:
    """A wish for tokens as a number that every engine can hold."""
    return None if tokens is None else min(tokens, MOST_TOKENS)
