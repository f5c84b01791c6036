"""Profiles from the vendor's measurements."""

from __future__ import annotations

import json
import tomllib

import pytest

from npu.errors import ModelRefused
from npu.rkllm.abi import Answer
from npu.simulator import SimulatedModel, profile_of
from npu.simulator.library import FACTS
from npu.simulator.profile import BENCHMARK
from tests.npu.simulator.conftest import Open


def test_a_profile_is_what_was_measured(start: Open) -> None:
    """Qwen3-0.6B on an RK3588: its first token after 199.09 ms for 128 tokens, then 32.91 a second."""
    profile = profile_of("rk3588", "qwen3", "0.6b", "W8A8")
    assert (profile.decode_tps, profile.memory_mb) == (32.91, 791.11)
    assert 128 * 1000 / profile.prefill_tps + 1000 / profile.decode_tps == pytest.approx(199.09)
    runtime = start(SimulatedModel(profile=profile, time_scale=0), max_tokens=1)
    runtime.answer = lambda heard: Answer.CONTINUE
    runtime.run(list(range(128)))
    perf = runtime.perf()
    assert perf.prefill_ms + perf.generate_ms == pytest.approx(199.09, abs=0.01)


def test_every_row_makes_a_profile() -> None:
    benchmark = json.loads(BENCHMARK.read_text())
    for row in benchmark["rows"]:
        profile = profile_of(row["soc"], row["model"], row["size"], row["dtype"])
        assert profile.prefill_tps > 0 and profile.decode_tps == row["tokens_per_s"]
    sources = tomllib.loads((FACTS / "SOURCES.toml").read_text())
    assert (sources["benchmark"]["file"], sources["benchmark"]["release"]) == (BENCHMARK.name, benchmark["release"])


def test_what_was_not_measured_is_refused_with_what_was() -> None:
    with pytest.raises(
        ModelRefused, match=r"Qwen3 14B w8a8 was not measured on RK3562. Measured there: qwen2-0.5b:w8a8, "
    ):
        profile_of("RK3562", "Qwen3", "14B", "w8a8")
    with pytest.raises(ModelRefused, match="Chips: RK3562, RK3576, RK3588, RV1126B"):
        profile_of("RK1", "Qwen3", "0.6B", "w8a8")
