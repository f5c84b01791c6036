"""Settings of a worker process."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from npu.model import MOST_INSTANCES
from tasks.settings import Settings


class WorkerSettings(Settings):
    """What one worker may use, and how long it waits."""

    title: ClassVar[str] = "Worker"

    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads an engine may use. Unset: one less than there are cores, and "
        "none for the small ones of a big.LITTLE chip.",
    )
    memory_domain: int | None = Field(
        None,
        ge=0,
        lt=16,
        description="The NPU's memory domain the model is put into, where its manifest names none. Boards choose one for each of "
        "their workers. Unset: the first.",
    )
    instance: int = Field(
        1,
        ge=1,
        le=MOST_INSTANCES,
        description="Which one it is of several workers that its model has on this board. Boards number theirs.",
    )
    load_stall: float = Field(
        900.0, gt=0, description="Seconds a model may take to load before its worker counts as stuck and is restarted."
    )
    prefill_stall: float = Field(
        1800.0, gt=0, description="Seconds without progress in a prompt's prefill before the worker counts as stuck."
    )
    token_stall: float = Field(
        60.0, gt=0, description="Seconds between two tokens before the worker counts as stuck and is restarted."
    )
    abandoned_prefill: float = Field(
        30.0,
        gt=0,
        description="Seconds a prefill that nobody wants any more may go on while others wait, where nothing can abort it; past "
        "that its worker is restarted. About as long as the model takes to load is sensible.",
    )
    worker_grace: float = Field(
        10.0, ge=0, description="Seconds a stopping worker goes on with its job before it hands it back."
    )
