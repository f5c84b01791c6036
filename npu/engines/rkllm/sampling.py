"""Which requests the RKLLM runtime can sample by itself, and the numbers it is told for them."""

from __future__ import annotations

from dataclasses import fields

from npu.engine import Sampling
from npu.errors import SamplingRefused
from npu.rkllm.abi import Capabilities, NativeSampling

_NEUTRAL = Sampling()
OURS_ALONE = ("seed", "min_p", "typical_p", "logit_bias", "ignore_eos", "constraint", "logprobs")
"""What only we can do, from the runtime's logits."""
_NOT_TOLD = (*OURS_ALONE, "repeat_last_n")
"""What the runtime has no number for, a look-back window other than its own among it."""
_PENALTY = 2.0
"""The runtime's own bound for frequency and presence penalties, in both directions."""


def to_native(sampling: Sampling, vocabulary_size: int) -> NativeSampling:
    """The runtime's numbers for what it can express of `sampling`; the rest is left out."""
    return NativeSampling(
        # 1 is greedy, whatever the temperature; there is no number for "no limit".
        top_k=1 if sampling.temperature == 0 else sampling.top_k or vocabulary_size,
        top_p=sampling.top_p,
        temperature=sampling.temperature or 1.0,
        repeat_penalty=sampling.repeat_penalty,
        frequency_penalty=max(-_PENALTY, min(_PENALTY, sampling.frequency_penalty)),
        presence_penalty=max(-_PENALTY, min(_PENALTY, sampling.presence_penalty)),
        mirostat=sampling.mirostat,
        mirostat_tau=sampling.mirostat_tau,
        mirostat_eta=sampling.mirostat_eta,
    )


def beyond_native(sampling: Sampling, defaults: Sampling, can: Capabilities, vocabulary_size: int) -> str | None:
    """The first field that keeps the runtime from sampling this request by itself; None when it can.

    Without sampling per run it must be what `init` was given: the model's defaults.
    """
    for name in _NOT_TOLD:
        if getattr(sampling, name) != getattr(_NEUTRAL, name):
            return name
    for name in ("frequency_penalty", "presence_penalty"):
        if abs(getattr(sampling, name)) > _PENALTY:
            return name
    if not can.per_run_sampling and to_native(sampling, vocabulary_size) != to_native(defaults, vocabulary_size):
        return next(
            field.name for field in fields(Sampling) if getattr(sampling, field.name) != getattr(defaults, field.name)
        )
    return None


def refuse(field: str, version: str, why: str) -> SamplingRefused:
    """What to say when neither the runtime nor we can honour a field."""
    mend = "Leave it out" if field in ("constraint", "logprobs") else "Leave it out to get the model's own value"
    return SamplingRefused(field, f"{version} {why}. {mend}")
