"""Scores from the logits of yes and no, on every family that has any, against a simulator that knows them."""

from __future__ import annotations

import math

import pytest

from npu.engine import Ability, RerankEngine
from npu.errors import ContextTooLong, ModelRefused
from npu.simulator import SWITCHES, SimulatedModel
from tests.npu.engines.test_rkllm import LANGUAGE, QUESTIONS, Open, ask, expected, run
from tests.npu.engines.test_rkllm import opens as opens

BOTH = frozenset({Ability.TEXT, Ability.RERANK})
WITH_LOGITS = ("1.2.0", "1.2.1b1", "1.2.3", "1.3.0")


def share(tokens: list[int], yes: int, no: int, size: int) -> float:
    logits = LANGUAGE.logits(tokens, size)
    return math.exp(logits[yes]) / (math.exp(logits[yes]) + math.exp(logits[no]))


@pytest.mark.parametrize(
    "switch",
    ["", *(f"{name}={value}" for name, values in SWITCHES.items() for value in values[1:])],
    ids=lambda switch: switch or "plain",
)
@pytest.mark.parametrize("version", WITH_LOGITS)
def test_a_score_is_the_models_own(opens: Open, version: str, switch: str) -> None:
    """However the vendor's library does what nobody has documented, and between two answers."""
    name, _, value = switch.partition("=")
    engine = opens(version, SimulatedModel(switches={name: value} if name else {}), abilities=BOTH)
    assert isinstance(engine, RerankEngine)
    yes, no = (engine.tokenizer.encode(word)[0] for word in (" yes", " no"))
    for question in QUESTIONS[:3]:
        tokens = ask(engine, question)
        reading = engine.score(tokens, yes, no)
        assert reading.result() == pytest.approx(share(tokens, yes, no, len(engine.vocabulary)), abs=1e-6)
        assert (reading.stats.prompt_tokens, reading.stats.generated_tokens) == (len(tokens), 0)
        assert engine.loaded.handle.cache_size() in (None, 0)  # or what comes after is slower
        assert run(engine, tokens)[0] == expected(tokens)


@pytest.mark.parametrize("version", WITH_LOGITS)
def test_an_abort_and_what_does_not_fit(opens: Open, version: str) -> None:
    """Nothing comes of the one; the other is refused before it begins."""
    engine = opens(version, SimulatedModel(max_context_limit=256), abilities=BOTH)
    reading = engine.score([70] * 255, 1, 2)
    reading.abort()
    assert reading.result() is None
    assert engine.score([70] * 255, 1, 2).result() is not None
    with pytest.raises(ContextTooLong):
        engine.score([70] * 256, 1, 2)


def test_without_logits_a_model_that_is_to_rerank_is_refused(opens: Open) -> None:
    """With what to install."""
    with pytest.raises(ModelRefused, match=r"gives no logits.*1\.2\.0"):
        opens("1.1.4", abilities=BOTH)
