"""`bench model` on a simulated board, whose figures are the vendor's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from npu.simulator import SimulatedModel, profile_of
from ops import environment
from ops.bench.model.prompts import PROMPTS
from ops.bench.model.report import read_report
from tests.stack import Stack


@pytest.mark.full
def test_the_vendors_figures_come_out_of_the_whole_service(tmp_path: Path) -> None:
    """Within three percent. A large model, whose times are long beside those of a busy machine; its memory alone is made
    smaller, since one that large does not fit into one domain of the NPU's memory."""
    stack = Stack({}, rkllm_library="simulator", default_model="qwen3.5-4b")
    profile = replace(profile_of("RK3588", "Qwen3.5", "4B", "w8a8"), memory_mb=3000)
    stack.add_simulated("qwen3.5-4b", SimulatedModel(profile=profile, platform="RK3588", dtype="W8A8"))
    reference = json.loads(PROMPTS.read_text(encoding="utf-8"))["reference"]
    (tmp_path / "prompts.json").write_text(json.dumps({"reference": reference}))
    with stack:
        command = [sys.executable, "-m", "ops.cli.main", "bench", "model", "--type", "performance", "--runs", "3"]
        command += ["--prompts", str(tmp_path / "prompts.json"), "--out", str(tmp_path), "--url", stack.url]
        done = subprocess.run(
            command, env=environment.for_child({}), capture_output=True, text=True, check=False, timeout=110
        )
    assert done.returncode == 0, done.stderr
    [written] = tmp_path.glob("qwen3.5-4b-*.json")
    found = read_report(written)
    assert found.vendor is not None and found.vendor.model == "Qwen3.5"
    ratios = {each.measure: each.ratio for each in found.vendor.compared}
    memory = ratios.pop("memory_mb")
    assert memory == round(3000 / 4575.78, 4)
    assert set(ratios) == {"first_token_ms", "decode_tokens_per_s", "client_tokens_per_s"}
    assert all(0.97 < ratio < 1.03 for ratio in ratios.values()), ratios
