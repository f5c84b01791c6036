"""A run that reads texts one after another and says nothing: tokens and an engine in, an event for each text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from npu.engine import Reading
from tasks.events import Event, FinishReason
from tasks.worker.begun import Begun
from tasks.worker.generate import Sink, Totals

Outcome = TypeVar("Outcome")


def read_each(
    texts: Sequence[Sequence[int]],
    read: Callable[[Sequence[int]], Reading[Outcome]],
    event: Callable[[int, Outcome], Event],
    sink: Sink,
    totals: Totals,
    begun: Begun | None,
) -> FinishReason:
    """Read each text in turn; STOP, or CANCELLED. What it cost is added to `totals`. Raises what the engine, `event` and the
    sink raise. What earlier claims have `begun` is not read again."""
    done = 0
    for index, tokens in enumerate(texts):
        if begun is not None and index in begun.done:
            done += len(tokens)
            totals.prompt_tokens += len(tokens)
            continue
        reading = read(tokens)
        if not sink.begin(reading):
            return FinishReason.CANCELLED
        outcome = reading.result()
        if outcome is None or sink.cancelled:
            return FinishReason.CANCELLED
        totals.add(reading.stats, 0, first_of_prompt=True)
        done += len(tokens)
        sink.prefilled(done)
        sink.write((event(index, outcome),))
    return FinishReason.STOP
