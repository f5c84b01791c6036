"""The questions put to a library find out how it was made: here, how the simulator's switches were set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from npu.engines import Setup
from npu.engines.rkllm.acceptance import material_of
from npu.manifest import read_manifest
from npu.rkllm.abi import FAMILIES, Answer
from npu.rkllm.acceptance import CRASHED, INAPPLICABLE, MEASURES, QUESTIONS, UNKNOWN, Ended, Found, Material, ask
from npu.simulator import SWITCHES, Profile, SimulatedModel, write_adapter, write_model
from ops import environment

VERSIONS = tuple(abi.RUNTIMES[-1] for abi in FAMILIES)
FAST = Profile(prefill_tps=5_000, decode_tps=5_000)
BY_NAME = {question.name: question for question in (*QUESTIONS, *MEASURES)}

Prepare = Callable[[SimulatedModel, str], Material]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the simulator is compiled, once for each version."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def prepare(tmp_path: Path, build: Path) -> Prepare:
    """A model in the simulated runtime of a version."""

    def make(simulated: SimulatedModel, version: str) -> Material:
        folder = tmp_path / "model"
        write_model(folder, simulated)
        write_adapter(folder / "tone_lora.rkllm")
        with (folder / "manifest.toml").open("a") as manifest:
            manifest.write('[adapters]\ntone = "tone_lora.rkllm"\n')
        return material_of(read_manifest(folder / "manifest.toml"), Setup(build, rkllm_library=f"simulator-{version}"))

    return make


def put(name: str, material: Material, seconds: float = 60) -> Found:
    return ask(BY_NAME[name], material, environment.for_child({}), seconds)


def test_every_switch_has_a_question() -> None:
    assert {question.name for question in QUESTIONS} == set(SWITCHES)


def exists(switch: str, version: str) -> bool:
    """Whether a family has what the switch is about."""
    can = next(abi for abi in FAMILIES if version in abi.RUNTIMES).CAPABILITIES
    return {
        "return_two_before_1_3": version == "1.2.3",
        "history_zero_clears": can.keep_history,
        "after_pause": Answer.PAUSE in can.answers,
        "last_token_cached": can.cache_size,
        "adapter_keeps_cache": can.prefix_reuse,
        "logits_rows": can.logits,
        "prefill_counts_cached": can.perf,
    }.get(switch, True)


LIKE = {"1.2.1b1": pytest.mark.full}
"""Called as 1.2.0 is, but for images."""
MOST_WAYS = max(map(len, SWITCHES.values()))


@pytest.mark.parametrize("way", range(MOST_WAYS))
@pytest.mark.parametrize("version", [pytest.param(one, marks=LIKE.get(one, ())) for one in VERSIONS])
def test_it_names_the_switches_that_were_set(prepare: Prepare, version: str, way: int) -> None:
    """All of them at once, each way, on every family; what a family does not have is not asked."""
    chosen = {switch: values[way] for switch, values in SWITCHES.items() if way < len(values)}
    material = prepare(SimulatedModel(switches=chosen, profile=FAST), version)
    found = {name: put(name, material) for name in chosen}
    expected = {name: chosen[name] if exists(name, version) else INAPPLICABLE for name in chosen}
    if version == "1.3.0" and "running_polarity" in chosen:
        expected["running_polarity"] = "one"  # its header says so
    assert {name: one.answer for name, one in found.items()} == expected, found
    assert all(one.evidence for one in found.values())


def test_a_crash_is_an_answer(prepare: Prepare) -> None:
    """With what was told before it and what was printed last, and without the folders of its owner."""
    found = put("eos_delivered", prepare(SimulatedModel(segfault_after=3), "1.2.3"))
    assert (found.answer, found.ended) == (CRASHED, Ended.CRASHED)
    assert "Segmentation fault" in found.evidence[0]
    found = put("load", prepare(SimulatedModel(exit_after=0), "1.2.3"))
    assert found.ended is Ended.ANSWERED  # a load alone says no token
    found = put("abort", prepare(SimulatedModel(exit_after=1), "1.2.3"))
    assert (found.ended, found.evidence[0]) == (Ended.CRASHED, "The library ended the process (exit code 70).")


def test_a_hang_is_an_answer(prepare: Prepare) -> None:
    """Once the time is up, and nothing of the process is left."""
    found = put("callback_thread", prepare(SimulatedModel(hang_after=1), "1.3.0"), seconds=2)
    assert (found.answer, found.ended) == (UNKNOWN, Ended.LATE)
    assert found.evidence == ("It did not end within 2 s.",)


def test_a_model_that_does_not_load_is_an_answer(prepare: Prepare) -> None:
    found = put("logits_rows", prepare(SimulatedModel(init_fail=True), "1.2.3"))
    assert (found.answer, found.ended) == (UNKNOWN, Ended.ANSWERED)
    assert "rkllm_init returned -1" in found.evidence[0]


def test_paths_stay_here(prepare: Prepare, tmp_path: Path) -> None:
    """A library prints whole paths; a report has the names of files alone."""
    material = replace(prepare(SimulatedModel(), "1.2.3"), library=str(tmp_path / "there-is-none.so"))
    found = put("callback_thread", material)
    assert found.ended is Ended.BROKEN
    assert any("there-is-none.so" in line for line in found.evidence)
    assert str(tmp_path) not in str(found)


@pytest.mark.parametrize("version", ["1.1.4", "1.3.0"])
def test_every_measure_has_figures(prepare: Prepare, version: str) -> None:
    """Or does not apply to the family; those the simulator was told come out."""
    simulated = SimulatedModel(
        profile=Profile(prefill_tps=5_000, decode_tps=2_000),
        max_context_limit=1024,
        switches={"state_after_abort": "error", "error_status": "one"},
    )
    found = {measure.name: put(measure.name, prepare(simulated, version)) for measure in MEASURES}
    for name, one in found.items():
        assert (one.ended is Ended.ANSWERED and one.rows) or one.answer == INAPPLICABLE, one
        assert (one.answer == INAPPLICABLE) == (version == "1.1.4" and name in ("logits", "batches"))
    assert [row["tokens"] for row in found["speeds"].rows] == [128, 256, 512, 1008]
    assert {row["field"]: row["value"] for row in found["defaults"].rows}["max_new_tokens"] == 512
    assert [row["status"] for row in found["failed_init"].rows] == ([0, 0] if version == "1.1.4" else [-1, -1])
    for row in found["abort"].rows:
        assert (row["ended"], row["returned"]) == ("ERROR", "1")
    if version == "1.3.0":
        assert [row["own_decode_tps"] for row in found["speeds"].rows] == [2000] * 4
        assert [row["own_prefill_tps"] for row in found["speeds"].rows] == [5_000] * 4
        assert [row["slots"] for row in found["batches"].rows] == [1, 2, 4, 8]
        again = found["reuse"].rows[1]
        assert (again["counted"], again["counted_again"], again["counted_with_32_new"]) == (512, 1, 32)
        assert "runtime: 1.3.0" in found["load"].evidence
