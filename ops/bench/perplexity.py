"""How well a model predicts a text: each token's probability behind those before it, asked of a running service.

A completion of one token, forced by a bias, tells the probability that the model itself gave that token.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from npu.errors import NpuError
from ops.service import Service

FORCED = 100
"""The most that a bias may be."""
NEEDED = ("logprobs", "logit_bias")
"""Fields of a request without which this cannot be done."""
BYTES = 64
"""Of the file for each token that is wanted; no more is read."""
LEAST = 2
"""Predicted tokens, without which nobody knows how much they differ."""
Z = 1.96
"""Standard errors on either side of a mean that hold it with a confidence of 95 %."""

Tell: TypeAlias = Callable[[], None]


class NoPerplexity(NpuError):
    """Raised where it cannot be told; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text."""

    id: int
    piece: str
    """Its text; a part of a character is U+FFFD."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """What a text was worth to a model."""

    model: str
    file: str
    tokens: int
    """Predicted ones."""
    bytes: int
    """Of their text."""
    window: int
    """Tokens before a predicted one, at the most; where the text has them, there are at least half as many."""
    perplexity: float
    low: float
    high: float
    """Where it lies with a confidence of 95 %, as far as tokens can be taken for independent."""
    bits_per_byte: float
    """The same for models with different vocabularies."""


def measure(service: Service, model: str, file: Path, most: int, window: int) -> Perplexity:
    """The perplexity of the first tokens of a file, at most `most`. Raises `NoPerplexity`, `ServiceError`."""
    found = service.model(model)
    for field in NEEDED:
        if why := found["meta"]["refuses"].get(field):
            raise NoPerplexity(f"{model} has no perplexity that could be told, since it refuses {field}: {why}")
    window = min(window, found["context_length"] - 1)
    begin, tokens = _tokens(service, model, _read(file, most * BYTES))
    tokens = tokens[: most + (0 if begin else 1)]
    first = 0 if begin else 1
    size = sum(token.size for token in tokens[first:])
    if len(tokens) - first < LEAST or not size:
        raise NoPerplexity(f"{file} has too little text to predict any of it.")
    with _progress(len(tokens) - first) as tell:
        logs = []
        for place in range(first, len(tokens)):
            before = [*begin, *(token.id for token in tokens[begin_of(place, window - len(begin)) : place])]
            logs.append(_logprob(service, model, before, tokens[place]))
            tell()
    mean = statistics.fmean(logs)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return Perplexity(
        model=model,
        file=file.name,
        tokens=len(logs),
        bytes=size,
        window=window,
        perplexity=math.exp(-mean),
        low=math.exp(-mean - Z * error),
        high=math.exp(-mean + Z * error),
        bits_per_byte=-sum(logs) / math.log(2) / size,
    )


def begin_of(place: int, window: int) -> int:
    """The first token of the text that is shown before the one at `place`: it moves by half a window at a time, so that
    what is shown begins as before most times, and is in the cache."""
    half = max(1, window // 2)
    return max(0, (place - half) // half * half)


def told(found: Perplexity) -> str:
    """In words."""
    interval = f"{found.perplexity:.3f} ({found.low:.3f} to {found.high:.3f})"
    text = f"{found.tokens:,} tokens ({found.bytes:,} bytes) of {found.file}, each behind {found.window} tokens at the most"
    return f"{interval}, {found.bits_per_byte:.4f} bits per byte: {found.model} on {text}"


def _read(file: Path, most: int) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise NoPerplexity(f"{file} cannot be read: {error.strerror}.") from error
    cut = data[:most]
    try:
        return cut.decode()
    except UnicodeDecodeError as error:
        if len(data) > most and error.start > most - 4:  # the cut went through a character
            return cut[: error.start].decode()
        raise NoPerplexity(f"{file} is no text in UTF-8.") from error


def _tokens(service: Service, model: str, text: str) -> tuple[list[int], list[Token]]:
    """What the model's vocabulary wants in front of a text, and the text."""
    plain = service.tokens(model, text, special=False)
    begun = service.tokens(model, text, special=True)
    extra = len(begun) - len(plain)
    front = [each["id"] for each in begun[:extra]] if extra > 0 and begun[extra:] == plain else []
    return front, [_token(each) for each in plain]


def _token(told: dict[str, Any]) -> Token:
    piece = told["piece"]
    data = piece.encode() if isinstance(piece, str) else bytes(piece)
    return Token(told["id"], data.decode(errors="replace"), len(data))


def _logprob(service: Service, model: str, before: Sequence[int], token: Token) -> float:
    answer = service.complete(
        {
            "model": model,
            "prompt": list(before),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 0,
            "logit_bias": {str(token.id): FORCED},
        }
    )
    said = answer["choices"][0]["logprobs"] or {"tokens": []}
    if said["tokens"] != [token.piece]:
        raise NoPerplexity(
            f"{model} said another token than the bias was for, so its perplexity cannot be told: its engine has no logits, "
            "as that of an echo, or the text has tokens that end an answer."
        )
    return float(said["token_logprobs"][0])


@contextmanager
def _progress(tokens: int) -> Iterator[Tell]:
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=tokens)
        yield lambda: bars.advance(task)
