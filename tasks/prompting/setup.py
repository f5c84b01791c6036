"""What the engines of this board are told, from the settings every process shares."""

from __future__ import annotations

from npu.engines import Setup
from npu.hardware import Memory, read_memory
from tasks.instances import MARK
from tasks.settings import TaskSettings


def setup_of(
    settings: TaskSettings, threads: int | None = None, memory_domain: int | None = None, instance: int = 1
) -> Setup:
    """The setup; all but the settings are the worker's own."""
    run = settings.data_dir / "run"
    return Setup(
        runtime_dir=run if instance == 1 else run / f"{MARK}{instance}",  # which no model is called
        threads=threads,
        context_length=settings.context_length,
        model_memory=model_memory(memory_of(settings).total, settings),
        memory_domain=memory_domain,
        rkllm_library=settings.rkllm_library,
        rkllm_version=settings.rkllm_version,
        rkllm_fetched=settings.data_dir / "runtime",
    )


def memory_of(settings: TaskSettings, machine: Memory | None = None) -> Memory:
    """The memory of this board, or what it is taken to have where that is less. `machine` is what was read of it just now."""
    memory = machine or read_memory()
    if settings.memory_total is None:
        return memory
    most = settings.memory_total << 20
    return Memory(min(memory.total, most), min(memory.available, most))


def model_memory(total: int, settings: TaskSettings) -> int:
    """Bytes that the models of a board with `total` bytes of memory may have together."""
    return total - int(total * settings.memory_reserve)
