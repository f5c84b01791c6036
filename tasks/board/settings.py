"""Settings of a board agent."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tasks.settings import Settings


class BoardSettings(Settings):
    """What one board's agent does by itself."""

    title: ClassVar[str] = "Board"

    preload: bool = Field(True, description="Load the default model when the board starts, not with the first request.")
    memory_reserve: float = Field(0.1, ge=0, lt=1, description="Part of the board's memory that models may never use.")
    restart_limit: float = Field(
        60.0, gt=0, description="Longest pause in seconds before a worker that keeps dying is started again."
    )
