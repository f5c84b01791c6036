"""One loaded engine of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from npu.engines import ENGINES, Setup, open_engine
from npu.engines.rkllm import engine as rkllm_engine
from npu.manifest import read_manifest
from npu.model import Model
from npu.simulator import Profile, SimulatedModel, write_model
from tests.npu.demo import Opened, demo_model
from tests.simulators import share_simulators


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is left half tried because this machine is busy."""
    monkeypatch.setattr(rkllm_engine, "SECONDS", 60.0)


def with_marks(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.model) if name == "llamacpp" else name


@pytest.fixture(scope="session")
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private directory, in which the simulated runtimes are."""
    path = tmp_path_factory.mktemp("run")
    share_simulators(path)
    return path


@pytest.fixture(scope="module", params=[with_marks(name) for name in ENGINES])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, runtime_dir: Path
) -> Iterator[Opened]:
    """Each engine of the table in turn, slowed where it is too fast to be caught in the act."""
    match request.param:
        case "echo":
            options = {"tokens_per_second": 500, "prefill_tokens_per_second": 5000}
            model = replace(demo_model("echo"), engine_options=options)
        case "rkllm":
            model = simulated(tmp_path_factory.mktemp("models") / "simulated")
        case other:
            model = demo_model(other)
    setup = Setup(runtime_dir, context_length=1024, rkllm_library="simulator")
    engine = open_engine(model, setup)
    yield Opened(engine, model, setup)
    engine.close()


def simulated(folder: Path) -> Model:
    answers = {"Write the emoji": "😀 😃 🎉 世界你好"}
    write_model(folder, SimulatedModel(answers=answers, profile=Profile(prefill_tps=20_000, decode_tps=500)))
    return replace(read_manifest(folder / "manifest.toml"), engine_options={"prefill_slice": 128})
