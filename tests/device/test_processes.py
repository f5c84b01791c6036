"""Two models at once, each in a process of its own, as the service runs them."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from npu.engine import Ability, Prompt
from npu.engines import Setup, open_engine
from npu.engines.rkllm.engine import RkllmEngine
from npu.model import Model
from tests.device.conftest import machine

pytestmark = pytest.mark.timeout(900)


def answer(model: Model, setup: Setup) -> list[list[int]]:
    """Three answers in a row."""
    engine = open_engine(model, setup)
    assert isinstance(engine, RkllmEngine)
    tokens = engine.tokenizer.encode("Once upon a time there was a", add_special=True)
    said = [[piece.token for piece in engine.generate(Prompt(tokens, 24), engine.loaded.defaults)] for _ in range(3)]
    engine.close()
    return said


def test_two_models_answer_side_by_side(setup: Setup) -> None:
    """The two smallest, or one of them twice; each to its end."""
    models = sorted(
        (model for model in machine()[2] if Ability.TEXT in model.abilities), key=lambda one: one.size_bytes
    )
    if not models:
        pytest.skip("there is no model for text")
    pair = (models[0], models[min(1, len(models) - 1)])
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        for answers in processes.map(answer, pair, [setup] * 2):
            assert len(answers) == 3 and all(answers)
