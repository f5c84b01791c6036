"""What the engines of this board are told, from the settings every process shares."""

from __future__ import annotations

from npu.engines import Setup
from tasks.settings import TaskSettings


def setup_of(settings: TaskSettings, threads: int | None = None) -> Setup:
    """The setup; `threads` is the worker's own."""
    return Setup(
        runtime_dir=settings.data_dir / "run",
        threads=threads,
        context_length=settings.context_length,
        rkllm_library=settings.rkllm_library,
        rkllm_version=settings.rkllm_version,
        rkllm_fetched=settings.data_dir / "runtime",
    )
