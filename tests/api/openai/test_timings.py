"""What an answer tells of its time and memory."""

from __future__ import annotations

from api.openai.translate.answer import timings
from tasks.events import Finished, FinishReason, Timings, Usage


def test_memory_is_told_where_the_runtime_tells_it() -> None:
    """Nothing is not 0."""
    told = Finished(FinishReason.STOP, Usage(1, 1), Timings(memory_mb=791.11))
    assert timings(told)["memory_mb"] == 791.11
    assert "memory_mb" not in timings(Finished(FinishReason.STOP, Usage(1, 1), Timings()))
