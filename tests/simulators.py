"""The simulated runtimes of all tests, each built once for its source and kept: what one was built from is in its name."""

from __future__ import annotations

from pathlib import Path

from npu.engines.rkllm.library import SIMULATOR
from tasks.settings import ROOT

SIMULATORS = ROOT / ".pytest_cache" / "simulators"


def share_simulators(runtime_dir: Path) -> None:
    """Let whoever runs with this runtime directory use them."""
    SIMULATORS.mkdir(parents=True, exist_ok=True)
    runtime_dir.mkdir(mode=0o700, exist_ok=True)
    (runtime_dir / SIMULATOR).symlink_to(SIMULATORS)
