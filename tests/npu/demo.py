"""The models engines are tested with, and one loaded engine to hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from npu.catalog import find_models
from npu.engine import TextEngine
from npu.engines import Setup
from npu.model import Model

MODELS_DIR = Path(__file__).parents[2] / "models"
IDS = {"echo": "echo", "llamacpp": "smollm2-135m-instruct"}
"""The model each engine is tested with; a new engine needs a line."""


def demo_model(engine: str) -> Model:
    """The model for an engine: missing weights skip the test at home and fail it in CI."""
    model = find_models(MODELS_DIR).find(IDS[engine])
    if model is None:
        missing = f"models/ has no {IDS[engine]}; fetch it with `ops/run`"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return model


@dataclass(frozen=True)
class Opened:
    """An engine, its model, and what it was opened with."""

    engine: TextEngine
    model: Model
    setup: Setup
