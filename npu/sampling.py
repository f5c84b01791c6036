"""What values of `Sampling` make sense to any engine."""

from __future__ import annotations

from math import isfinite

from npu.engine import Sampling
from npu.errors import SamplingRefused

MAX_LOGPROBS = 20
"""How many of the likeliest tokens may be asked for at each place."""

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "repeat_last_n": (-1, 2**31 - 1),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 100.0),
}


def check_sampling(sampling: Sampling, vocabulary_size: int) -> None:
    """Raises `SamplingRefused` on a value out of its range, not a number, or a token outside the vocabulary."""
    for name, (low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if not isfinite(value) or not low <= value <= high:
            raise SamplingRefused(name, f"{value} is not between {low} and {high}")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        raise SamplingRefused("logprobs", f"{sampling.logprobs} is not between 0 and {MAX_LOGPROBS}")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary_size:
            raise SamplingRefused(
                "logit_bias", f"token {token} is outside the vocabulary, whose ids go from 0 to {vocabulary_size - 1}"
            )
        if not isfinite(bias):
            raise SamplingRefused("logit_bias", f"{bias} for token {token} is not a finite number")
