"""Another release of the library is tried with a model, in a process that it may end."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from npu.engines import Setup
from npu.engines.rkllm.facts import FACTS_FILE
from npu.engines.rkllm.trial import try_out
from npu.manifest import read_manifest
from npu.model import Model
from npu.self_test import Verdict
from npu.simulator import Profile, SimulatedModel, build, write_model
from tests.simulators import SIMULATORS, share_simulators
from tests.stack import eventually


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
    assert not list(setup.runtime_dir.rglob(FACTS_FILE)) and not list(setup.runtime_dir.glob(".trial-*"))


def test_a_release_that_talks_nonsense(tmp_path: Path, setup: Setup) -> None:
    """As a library does that does not fit the weights."""
    model = put(tmp_path, SimulatedModel(garbage=True))
    trial = try_out(model, tmp_path / "models", build("1.2.3", SIMULATORS), "1.2.3", setup)
    assert "suspect" in trial.problem


ASKER = """
import sys
from pathlib import Path
from npu.engines import Setup
from npu.engines.rkllm.trial import try_out
from npu.manifest import read_manifest
folder = Path(sys.argv[1])
setup = Setup(folder / "run", context_length=256, rkllm_library="simulator")
try_out(read_manifest(folder / "models" / "m" / "manifest.toml"), folder / "models", Path(sys.argv[2]), "1.2.3", setup)
"""


def test_it_does_not_outlive_whoever_asked(tmp_path: Path, setup: Setup) -> None:
    """The next agent loads models into the memory that it holds."""
    put(tmp_path, SimulatedModel(profile=Profile(load_ms=600_000)))
    library = build("1.2.3", SIMULATORS)
    asker = subprocess.Popen([sys.executable, "-c", ASKER, str(tmp_path), str(library)])
    children = Path(f"/proc/{asker.pid}/task/{asker.pid}/children")

    def trial() -> int | None:
        """Its process, once it has the library."""
        for child in map(int, children.read_text().split()):
            with suppress(FileNotFoundError):  # it was another, and is gone
                if str(library) in Path(f"/proc/{child}/maps").read_text():
                    return child
        return None

    process = eventually(trial, what="a trial")
    asker.kill()
    asker.wait()
    eventually(lambda: not _runs(process), what="the end of the trial")


def _runs(process: int | None) -> bool:
    """Whether it is more than a name that nobody has asked after."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_library_that_ends_the_process(tmp_path: Path, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or refuses the model, or never answers: each is a sentence."""
    model, library = put(tmp_path, SimulatedModel(init_segfault=True)), build("1.2.3", SIMULATORS)
    assert "ended the process" in try_out(model, tmp_path / "models", library, "1.2.3", setup).problem
    (tmp_path / "models" / "m" / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in try_out(model, tmp_path / "models", library, "1.2.3", setup).problem
    assert "within 0 s" in try_out(model, tmp_path / "models", library, "1.2.3", setup, 0.01).problem
