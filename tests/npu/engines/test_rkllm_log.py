"""What the vendor's library prints of its own, and how much of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from npu.engines import Setup
from npu.engines.rkllm.engine import RkllmEngine
from npu.manifest import read_manifest
from npu.simulator import SimulatedModel, build, write_model
from tests.npu.engines.test_rkllm import GREEDY, ask, expected, run
from tests.npu.simulator.runtime import in_child


@pytest.mark.parametrize(("level", "prints"), [(0, ()), (1, ("prefill",)), (2, ("prefill", "input tokens:"))])
def test_it_prints_as_much_as_the_manifest_says(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, level: int, prints: tuple[str, ...]
) -> None:
    """Whatever the environment says."""
    monkeypatch.setenv("RKLLM_LOG_LEVEL", "2" if level == 0 else "0")
    library = tmp_path / "librkllmrt.so"  # A library that is loaded already would not look again.
    library.write_bytes(build("1.3.0", runtime_dir / "simulator").read_bytes())
    write_model(tmp_path / "model", SimulatedModel())
    model = read_manifest(tmp_path / "model" / "manifest.toml")
    options = {"log_level": level, "self_test": 0}

    def child() -> None:
        setup = Setup(tmp_path / "run", rkllm_library=str(library), rkllm_version="1.3.0")
        engine = RkllmEngine(replace(model, sampling_defaults=GREEDY, engine_options=options), setup)
        tokens = ask(engine, "Hello")
        assert run(engine, tokens)[0] == expected(tokens)

    status, said = in_child(child)
    assert (status, [word for word in ("prefill", "input tokens:") if word in said]) == (0, [*prints]), said
