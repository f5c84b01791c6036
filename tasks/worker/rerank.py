"""A run that judges: prepared questions and an engine in, scores out. No Celery, no Redis, no clock."""

from __future__ import annotations

from npu.engine import RerankEngine
from tasks.events import FinishReason, Scored
from tasks.prompting.prepare import PreparedQuestions
from tasks.worker.begun import Begun
from tasks.worker.generate import Sink, Totals


def run(
    prepared: PreparedQuestions, engine: RerankEngine, sink: Sink, totals: Totals, begun: Begun | None = None
) -> FinishReason:
    """Score each document in turn; STOP, or CANCELLED. What it cost is added to `totals`. Raises what the engine and the
    sink raise. What earlier claims have `begun` is not read again."""
    done = 0
    for index, tokens in enumerate(prepared.inputs):
        if begun is not None and index in begun.done:
            done += len(tokens)
            totals.prompt_tokens += len(tokens)
            continue
        reading = engine.score(tokens, prepared.yes, prepared.no)
        if not sink.begin(reading):
            return FinishReason.CANCELLED
        score = reading.result()
        if score is None or sink.cancelled:
            return FinishReason.CANCELLED
        totals.add(reading.stats, 0, first_of_prompt=True)
        done += len(tokens)
        sink.prefilled(done)
        sink.write((Scored(index, score),))
    return FinishReason.STOP
