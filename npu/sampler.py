"""Chooses the next token from a model's logits, in the order and with the meaning of llama.cpp's chain of samplers.

Bias, penalties, then top_k, typical_p, top_p, min_p, temperature, and one draw. Temperature 0 takes the best token instead,
and mirostat stands in for the four filters; penalties hold beside it, unlike in llama.cpp, which then drops them silently.
All arithmetic is in double precision; of equals the lower id comes first.

The number drawn for a token depends on the seed and on how many tokens stand before it, prompt included, and on nothing else.
So a run that begins with the prompt and half an answer draws what the unbroken run would have drawn.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from npu.engine import Sampling
from npu.errors import EngineFailed, PromptRefused
from npu.sampling import check_sampling

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_LARGEST = float(np.finfo(np.float32).max)
_BLOCK = 64
_FEW = 256
"""How many of the best are sorted first, where a share of the whole is looked for: nearly always enough."""
_MIROSTAT_SAMPLE = 100
"""From how many of the best tokens mirostat 1 estimates how steep the distribution is, as in llama.cpp."""


class Sampler:
    """What one run draws its tokens with. It belongs to that run, and to one thread at a time.

    `prompt` is what stands before the first token; penalties count it as llama.cpp does. `end_tokens` are never drawn when
    `sampling.ignore_eos` asks for that. Mirostat learns from each token how much to cut; this alone is not known to a run
    that continues another's answer, and starts anew there.
    """

    def __init__(
        self, sampling: Sampling, vocabulary_size: int, prompt: Sequence[int], end_tokens: Collection[int] = ()
    ) -> None:
        """Raises `SamplingRefused` on a value that makes no sense, `PromptRefused` on a token outside the vocabulary."""
        check_sampling(sampling, vocabulary_size)
        self._sampling = sampling
        self._size = vocabulary_size
        seed = int.from_bytes(os.urandom(8)) if sampling.seed is None else sampling.seed
        self.seed = seed % 2**64
        """What the numbers are drawn from: 64 bits, chosen here when `sampling` has none."""
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float64)
        self._banned = np.fromiter(end_tokens if sampling.ignore_eos else (), np.int64)
        self._mu = 2 * sampling.mirostat_tau
        self._last: int | None = None
        self._position = len(prompt)
        self._penalizes = sampling.repeat_last_n != 0 and (
            sampling.repeat_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        window = np.asarray(prompt, np.int64)
        self._check(window)
        self._window: deque[int] | None = None
        if sampling.repeat_last_n != -1:
            window = window[max(0, len(window) - sampling.repeat_last_n) :]
            self._window = deque(window.tolist())
        self._counts = np.bincount(window, minlength=vocabulary_size) if self._penalizes else np.zeros(0, np.int64)

    def next(self, logits: ReadableBuffer, allowed: npt.NDArray[np.bool_] | Ids | None = None) -> int:
        """Draw the next token, and count it as said. Takes and raises what `distribution` does."""
        ids, chances = self.distribution(logits, allowed)
        place = self._draw(chances)
        token = int(ids[place])
        if self._sampling.mirostat:
            self._mu -= self._sampling.mirostat_eta * (-math.log2(chances[place]) - self._sampling.mirostat_tau)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Count a token as said that was not drawn here. Raises `PromptRefused` when it is outside the vocabulary."""
        self._check(np.array([token]))
        self._last = token
        self._position += 1
        if not self._penalizes:
            return
        self._counts[token] += 1
        if self._window is not None:
            self._window.append(token)
            if len(self._window) > self._sampling.repeat_last_n:
                self._counts[self._window.popleft()] -= 1

    def distribution(
        self, logits: ReadableBuffer, allowed: npt.NDArray[np.bool_] | Ids | None = None
    ) -> tuple[Ids, Floats]:
        """The tokens that may come next, and how likely each is to be drawn; the chances sum to 1.

        `logits` holds one contiguous float32 for each token of the vocabulary and is left as it is. NaN counts as minus
        infinity, plus infinity as the largest float32. `allowed` limits the choice: a truth for each token, or ids.
        Raises `EngineFailed` on logits of the wrong number or without a single usable one, `PromptRefused` when nothing
        that is allowed has a chance.
        """
        sampling = self._sampling
        values = self._read(logits)
        values[self._bias_ids] += self._bias
        values[self._banned] = -np.inf
        if allowed is not None:
            values = _limited(values, allowed)
        if self._penalizes:
            self._penalize(values)
        best = int(values.argmax())
        if values[best] == -np.inf:
            raise PromptRefused(
                "No token can come next: all that are allowed here have no chance. Loosen the grammar, or drop ignore_eos."
            )
        if sampling.temperature == 0:
            return np.array([best]), np.ones(1)
        values -= values[best]  # Between the greatest numbers there are, differences of 1 would be lost.
        if sampling.mirostat:
            ids, values = self._mirostat(_heated(values, sampling.temperature))
        else:
            ids, values = _filtered(values, sampling)
            values = _heated(values, sampling.temperature)
        return ids, _softmax(values)

    def logprobs(self, logits: ReadableBuffer, top: int) -> tuple[float, list[tuple[int, float]]]:
        """The natural logarithm of the model's own chance for the last token, and for the `top` likeliest, best first.

        `logits` are those the token was drawn from: no bias, penalty, temperature or filter touches what is told here.
        Raises `RuntimeError` before the first token, `EngineFailed` as `distribution` does.
        """
        if self._last is None:
            raise RuntimeError("no token was drawn yet")
        values = self._read(logits)
        values -= values.max()
        values -= _log_total(values)
        best = _largest(values, top)
        return float(values[self._last]), list(zip(best.tolist(), values[best].tolist(), strict=True))

    def _check(self, tokens: Ids) -> None:
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self._size):
            wrong = next(token for token in tokens.tolist() if not 0 <= token < self._size)
            raise PromptRefused(f"Token {wrong} is outside the vocabulary, whose ids go from 0 to {self._size - 1}.")

    def _read(self, logits: ReadableBuffer) -> Floats:
        data = memoryview(logits)
        if data.nbytes != 4 * self._size:
            raise EngineFailed(
                f"The model gave {data.nbytes} bytes of logits, and {self._size} tokens need {4 * self._size}. "
                "The tokenizer belongs to another model, or the runtime to another version."
            )
        values: Floats = np.frombuffer(data, np.float32).astype(np.float64)
        if not math.isfinite(values.max()):
            np.nan_to_num(values, copy=False, nan=-np.inf, posinf=_LARGEST, neginf=-np.inf)
            if values.max() == -np.inf:
                raise EngineFailed(
                    "The model gave no usable logits: not one of them is a number. Load it again; if this comes back, "
                    "the weights are damaged or were converted for another runtime."
                )
        return values

    def _penalize(self, values: Floats) -> None:
        said = np.flatnonzero(self._counts > 0)
        logits = values[said]
        penalty = self._sampling.repeat_penalty
        # Dividing alone would make tokens with a negative logit likelier.
        logits = np.where(logits <= 0, logits * penalty, logits / penalty)
        logits -= self._counts[said] * self._sampling.frequency_penalty + self._sampling.presence_penalty
        values[said] = logits

    def _mirostat(self, values: Floats) -> tuple[Ids, Floats]:
        if self._sampling.mirostat == 1:
            ids = _largest(values, self._mirostat_count(values[_largest(values, _MIROSTAT_SAMPLE)]))
        else:
            surprise = (_log_total(values) - values) / math.log(2)
            ids = np.flatnonzero(surprise <= self._mu)
            if not ids.size:
                ids = np.array([values.argmax()])
        return ids, values[ids]

    def _mirostat_count(self, best: Floats) -> int:
        """How many of the best tokens to keep for a surprise of `mu` bits, if chances fall as Zipf's law has it."""
        if len(best) < 2:
            return 1
        ranks = np.arange(1, len(best))
        steps = np.log((ranks + 1) / ranks)
        exponent = float(steps @ (best[:-1] - best[1:]) / (steps @ steps))
        # As a logarithm, and first for a flat distribution: k equal chances surprise by log k.
        count = self._mu * math.log(2)
        if exponent > 0:
            excess = exponent - 1
            span = -math.expm1(-excess * math.log(self._size))
            count = (count + math.log(excess / span if excess else 1 / math.log(self._size))) / exponent
        return max(1, int(math.exp(count))) if count < math.log(self._size) else self._size

    def _draw(self, chances: Floats) -> int:
        number = int(np.random.Philox(key=self.seed, counter=self._position).random_raw()) >> 11
        sums = np.cumsum(chances)
        return int(np.searchsorted(sums, number / 2**53 * sums[-1], side="right"))


def _limited(values: Floats, allowed: npt.NDArray[np.bool_] | Ids) -> Floats:
    if allowed.dtype == np.bool_:
        return np.where(allowed, values, -np.inf)
    limited = np.full_like(values, -np.inf)
    limited[allowed] = values[allowed]
    return limited


def _filtered(values: Floats, sampling: Sampling) -> tuple[Ids, Floats]:
    ids = _largest(values, sampling.top_k) if sampling.top_k else np.flatnonzero(values > -np.inf)
    values = values[ids]
    if sampling.typical_p < 1:
        logs = values - _log_total(values)
        chances = np.exp(logs)
        entropy = -(chances @ logs)
        kept = _share(-np.abs(-logs - entropy), chances, sampling.typical_p, "right")
        ids, values = ids[kept], values[kept]
    if sampling.top_p < 1:
        chances = _softmax(values)
        # All below this together have less than what may be missing from the share: they need not be sorted.
        likely = np.flatnonzero(chances >= (1 - sampling.top_p) / len(chances))
        kept = likely[_share(values[likely], chances[likely], sampling.top_p, "left")]
        ids, values = ids[kept], values[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(values >= values.max() + math.log(sampling.min_p))
        ids, values = ids[kept], values[kept]
    return ids, values


def _share(scores: Floats, chances: Floats, share: float, side: Literal["left", "right"]) -> Ids:
    """Places of the fewest best scores whose chances add up to `share` (`left`), or to more than that (`right`)."""
    count = _FEW
    while True:
        places = _largest(scores, count)
        end = int(np.searchsorted(np.cumsum(chances[places]), share, side=side))
        if end < len(places) or count >= len(scores):
            return places[: end + 1]
        count *= 8


def _largest(values: Floats, count: int) -> Ids:
    """Places of the `count` largest values, the largest first, without those of minus infinity."""
    floor = -np.inf
    blocks = len(values) // _BLOCK
    if 0 < count < blocks:
        # At least `count` values reach the smallest of the `count` largest maxima. Few others do, so few are sorted.
        maxima = values[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        floor = np.partition(maxima, -count)[-count]
    places = np.flatnonzero(values >= floor if floor > -np.inf else values > floor)
    return places[np.argsort(-values[places], kind="stable")[:count]]


def _heated(values: Floats, temperature: float) -> Floats:
    with np.errstate(over="ignore"):  # A temperature near 0 sends all but the best to minus infinity, rightly.
        heated: Floats = (values - values.max()) / temperature
    return heated


def _softmax(values: Floats) -> Floats:
    chances: Floats = np.exp(values - values.max())
    chances /= chances.sum()
    return chances


def _log_total(values: Floats) -> float:
    """What logits lack to be logarithms of chances. They are at most 0, and one of them is near it."""
    return math.log(float(np.exp(values).sum()))
