"""Another release of the library is tried with a model, in a process that it may end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from npu.engines import Setup
from npu.engines.rkllm_facts import FACTS_FILE
from npu.engines.rkllm_trial import try_out
from npu.manifest import read_manifest
from npu.model import Model
from npu.self_test import Verdict
from npu.simulator import SimulatedModel, build, write_model
from tests.simulators import SIMULATORS, share_simulators


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    share_simulators(tmp_path / "run")
    return Setup(tmp_path / "run", context_length=256, rkllm_library="simulator")


def put(folder: Path, simulated: SimulatedModel | None = None) -> Model:
    write_model(folder / "models" / "m", replace(simulated or SimulatedModel(), name="m"))
    return read_manifest(folder / "models" / "m" / "manifest.toml")


def test_a_release_that_will_do(tmp_path: Path, setup: Setup) -> None:
    """It says what it found out, and leaves nothing behind."""
    trial = try_out(put(tmp_path), tmp_path / "models", build("1.2.3", SIMULATORS), "1.2.3", setup)
    assert trial.problem == "" and trial.loaded is not None and trial.loaded.self_test is not None
    assert (trial.loaded.runtime, trial.loaded.self_test.text) == ("1.2.3", Verdict.SANE)
    assert not list(setup.runtime_dir.rglob(FACTS_FILE)) and not list(setup.runtime_dir.glob("trial-*"))


def test_a_release_that_talks_nonsense(tmp_path: Path, setup: Setup) -> None:
    """As a library does that does not fit the weights."""
    model = put(tmp_path, SimulatedModel(garbage=True))
    trial = try_out(model, tmp_path / "models", build("1.2.3", SIMULATORS), "1.2.3", setup)
    assert "suspect" in trial.problem


def test_a_library_that_ends_the_process(tmp_path: Path, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or refuses the model, or never answers: each is a sentence."""
    model, library = put(tmp_path, SimulatedModel(init_segfault=True)), build("1.2.3", SIMULATORS)
    assert "ended the process" in try_out(model, tmp_path / "models", library, "1.2.3", setup).problem
    (tmp_path / "models" / "m" / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in try_out(model, tmp_path / "models", library, "1.2.3", setup).problem
    assert "within 0 s" in try_out(model, tmp_path / "models", library, "1.2.3", setup, 0.01).problem
