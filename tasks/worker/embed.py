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
from tasks.worker.reading import read_each


def run(
    prepared: PreparedTexts, engine: EmbeddingEngine, sink: Sink, totals: Totals, begun: Begun | None = None
) -> FinishReason:
    """Embed each text in turn, as `read_each` does. Raises `SamplingRefused`, too, when the vectors have fewer dimensions than
    are wanted."""
    return read_each(
        prepared.inputs,
        engine.embed,
        lambda index, vector: Embedded(index, packed(unit(vector, prepared.dimensions))),
        *(sink, totals, begun),
    )


def packed(vector: Sequence[float]) -> bytes:
    """As `Embedded` carries it."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
