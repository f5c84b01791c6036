"""What a model is worth before and after it was quantized, by the toolkit's simulation on this PC."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.convert.recipe import Recipe
from ops.convert.refusal import RecipeRefused
from ops.convert.source import Prepared
from ops.convert.toolkit import Toolkit

ANSWER_TOKENS = 256
"""Tokens of prompt and answer together, as `max_length` counts them."""


@dataclass(slots=True)
class Measured:
    """One round of measurements. What could not be measured is a sentence instead of its value."""

    perplexity: float | str | None = None
    """None: no text to measure it on."""
    answers: dict[str, str] = field(default_factory=dict)
    """By question."""


def encode(recipe: Recipe, prepared: Prepared) -> list[int]:
    """The tokens perplexity is measured on; none without a text. Raises `RecipeRefused` when the text is too short."""
    if not prepared.text:
        return []
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise recipe.refuse(
            "evaluation",
            "text",
            "needs the package tokenizers, which comes with transformers. Install it, or remove the key",
        ) from error
    path = prepared.tokenizer / "tokenizer.json"
    try:
        tokens: list[int] = tokenizers.Tokenizer.from_file(str(path)).encode(prepared.text).ids
    except Exception as error:  # the package raises nothing narrower
        raise RecipeRefused(f"{path} cannot be read: {error}. Fetch it again from the model's page.") from error
    wanted = recipe("evaluation", "tokens")
    if len(tokens) < wanted:
        raise recipe.refuse(
            "evaluation",
            "text",
            f"has {len(tokens)} tokens, fewer than `evaluation.tokens` ({wanted}). Name a longer one",
        )
    return tokens[:wanted]


def measure(toolkit: Toolkit, prepared: Prepared, tokens: Sequence[int]) -> Measured:
    """Perplexity and the canary answers. A failure of the simulation is told, and ends no conversion."""
    measured = Measured()
    if tokens:
        measured.perplexity = _attempt(lambda: perplexity(toolkit.logits(tokens), tokens))
    for question, prompt in prepared.questions:
        measured.answers[question] = str(_attempt(lambda prompt=prompt: _answer(toolkit, prompt)))  # type: ignore[misc]
    return measured


def perplexity(logits: Any, tokens: Sequence[int]) -> float:
    """e to the mean of what each token after the first surprises the model. Raises `ValueError` when there are no logits."""
    if logits is None:
        raise ValueError("get_logits gave no logits")
    total = 0.0
    for place, following in enumerate(tokens[1:]):
        row = logits[0][place].float()
        total += float(row.logsumexp(0)) - float(row[following])
    return math.exp(total / (len(tokens) - 1))


def _answer(toolkit: Toolkit, prompt: str) -> str:
    answer = toolkit.chat(prompt, ANSWER_TOKENS)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"chat_model answered {answer!r}")
    return answer.strip()


def _attempt(work: Callable[[], float | str]) -> float | str:
    # The toolkit's simulation may raise anything, and documents nothing. An hour of quantization is worth more than a figure.
    try:
        return work()
    except Exception as error:
        return f"not measured: {type(error).__name__}: {error}"


def told(name: str, measured: Measured, source: Path) -> list[str]:
    """The measurements as lines for the terminal."""
    lines = []
    if measured.perplexity is not None:
        value = measured.perplexity
        lines.append(f"{name}: perplexity {value if isinstance(value, str) else f'{value:.3f}'} ({source.name})")
    return lines + [f"{name}: {question} → {answer}" for question, answer in measured.answers.items()]
