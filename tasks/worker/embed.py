"""A run that reads and says nothing: prepared texts and an engine in, vectors out. No Celery, no Redis, no clock."""

from __future__ import annotations

import array
import sys
from collections.abc import Sequence

from npu.embedding import unit
from npu.engine import EmbeddingEngine
from tasks.events import Embedded, FinishReason
from tasks.prompting.prepare import PreparedTexts
from tasks.worker.begun import Begun
from tasks.worker.generate import Sink, Totals


def run(
    prepared: PreparedTexts, engine: EmbeddingEngine, sink: Sink, totals: Totals, begun: Begun | None = None
) -> FinishReason:
    """Embed each text in turn; STOP, or CANCELLED. What it cost is added to `totals`. Raises what the engine and the sink
    raise, and `SamplingRefused` when the vectors have fewer dimensions than are wanted. What earlier claims have `begun` is
    not read again."""
    done = 0
    for index, tokens in enumerate(prepared.inputs):
        if begun is not None and index in begun.done:
            done += len(tokens)
            totals.prompt_tokens += len(tokens)
            continue
        reading = engine.embed(tokens)
        if not sink.begin(reading):
            return FinishReason.CANCELLED
        vector = reading.result()
        if vector is None or sink.cancelled:
            return FinishReason.CANCELLED
        totals.add(reading.stats, 0, first_of_prompt=True)
        done += len(tokens)
        sink.prefilled(done)
        sink.write((Embedded(index, packed(unit(vector, prepared.dimensions))),))
    return FinishReason.STOP


def packed(vector: Sequence[float]) -> bytes:
    """As `Embedded` carries it."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
