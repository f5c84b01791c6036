"""A run that judges: prepared questions and an engine in, scores out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from npu.engine import Stats
from tasks.events import FinishReason, Scored, Usage
from tasks.prompting.prepare import PreparedQuestions
from tasks.worker.generate import Totals
from tasks.worker.rerank import run
from tests.tasks.worker.test_embed import Notes

QUESTIONS = PreparedQuestions(((3, 4), (9,), (1, 0)), yes=7, no=8)


class Reader:
    """Scores a prompt by its length."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.aborted = False
        self.stats = Stats(len(tokens), 0, 2.0, 0, 0.0)

    def abort(self) -> None:
        self.aborted = True

    def result(self) -> float | None:
        return None if self.aborted else len(self.tokens) / 10


class Engine:
    """Scores by `Reader`, and wants the very tokens it was promised."""

    def score(self, tokens: Sequence[int], yes: int, no: int) -> Reader:
        assert (yes, no) == (7, 8)
        return Reader(tokens)


def test_each_document_has_its_score() -> None:
    """In order, with progress and cost."""
    notes, totals = Notes(), Totals()
    assert run(QUESTIONS, Engine(), notes, totals) is FinishReason.STOP
    assert notes == [Scored(0, 0.2), Scored(1, 0.1), Scored(2, 0.2)]
    assert notes.progress == [2, 3, 5]
    assert totals.usage() == Usage(5, 0, 0)


@pytest.mark.parametrize(("cancel_at", "told"), [(0, 0), (1, 0), (2, 1)])
def test_a_cancelled_run_tells_nothing_more(cancel_at: int, told: int) -> None:
    """Before it begins, in the first document, in the second."""
    notes = Notes(cancel_at)
    assert run(QUESTIONS, Engine(), notes, Totals()) is FinishReason.CANCELLED
    assert len(notes) == told
