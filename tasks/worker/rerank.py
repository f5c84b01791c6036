"""A run that judges: prepared questions and an engine in, scores out. No Celery, no Redis, no clock."""

from __future__ import annotations

from npu.engine import RerankEngine
from tasks.events import FinishReason, Scored
from tasks.prompting.prepare import PreparedQuestions
from tasks.worker.begun import Begun
from tasks.worker.generate import Sink, Totals
from tasks.worker.reading import read_each


def run(
    prepared: PreparedQuestions, engine: RerankEngine, sink: Sink, totals: Totals, begun: Begun | None = None
) -> FinishReason:
    """Score each document in turn, as `read_each` does."""
    return read_each(
        prepared.inputs,
        lambda tokens: engine.score(tokens, prepared.yes, prepared.no),
        Scored,
        *(sink, totals, begun),
    )
