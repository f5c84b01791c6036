"""A run that embeds: prepared texts and an engine in, vectors out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from npu.engine import Abortable, Stats
from npu.engines.echo import EchoEngine
from npu.errors import SamplingRefused
from npu.model import Model
from tasks.events import Embedded, Event, FinishReason, Usage
from tasks.prompting.prepare import PreparedTexts
from tasks.stream import RecordedPiece
from tasks.worker.begun import Begun
from tasks.worker.embed import run
from tasks.worker.generate import Totals


class Reader:
    """Reads a text as a vector of its own numbers; the abort of the text that is being read comes from the sink."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.aborted = False
        self.stats = Stats(len(tokens), 0, 2.0, 0, 0.0)

    def abort(self) -> None:
        self.aborted = True

    def result(self) -> Sequence[float] | None:
        return None if self.aborted else [float(token) for token in self.tokens]


class Engine:
    """Embeds by `Reader`."""

    embedding_length = 2

    def embed(self, tokens: Sequence[int]) -> Reader:
        return Reader(tokens)


class Notes(list[Event]):
    """A sink; cancelled when it has begun so many texts, and told so at once."""

    def __init__(self, cancel_at: int | None = None) -> None:
        super().__init__()
        self.progress: list[int] = []
        self.begun = 0
        self._cancel_at = cancel_at

    @property
    def cancelled(self) -> bool:
        return self._cancel_at is not None and self.begun >= self._cancel_at

    def begin(self, work: Abortable) -> bool:
        self.begun += 1
        if self.cancelled and self._cancel_at:
            work.abort()
        return self._cancel_at != 0

    def prefilled(self, tokens: int) -> None:
        self.progress.append(tokens)

    def write(self, events: tuple[Event, ...], piece: RecordedPiece | None = None) -> None:
        assert piece is None
        self.extend(events)


def vectors(events: Sequence[Event]) -> list[tuple[int, tuple[float, ...]]]:
    return [
        (event.index, struct.unpack(f"<{len(event.vector) // 4}f", event.vector))
        for event in events
        if isinstance(event, Embedded)
    ]


def test_each_text_has_its_vector() -> None:
    """Of length 1, in order, with progress and cost."""
    notes, totals = Notes(), Totals()
    assert run(PreparedTexts(((3, 4), (0, 9), (1, 0)), None), Engine(), notes, totals) is FinishReason.STOP
    assert vectors(notes) == [(0, pytest.approx((0.6, 0.8))), (1, (0.0, 1.0)), (2, (1.0, 0.0))]
    assert notes.progress == [2, 4, 6]
    assert totals.usage() == Usage(6, 0, 0)
    assert totals.prefill_ms == 6.0


def test_dimensions_are_cut_and_scaled() -> None:
    """Or refused by their name, before any vector is told."""
    notes = Notes()
    run(PreparedTexts(((3, 4),), 1), Engine(), notes, Totals())
    assert vectors(notes) == [(0, (1.0,))]
    notes = Notes()
    with pytest.raises(SamplingRefused) as refused:
        run(PreparedTexts(((3, 4),), 3), Engine(), notes, Totals())
    assert (refused.value.field, notes) == ("dimensions", [])


@pytest.mark.parametrize(("cancel_at", "told"), [(0, 0), (1, 0), (2, 1)])
def test_a_cancelled_run_tells_nothing_more(cancel_at: int, told: int) -> None:
    """Before it begins, in the first text, in the second."""
    notes = Notes(cancel_at)
    texts = PreparedTexts(((3, 4), (0, 9), (1, 0)), None)
    assert run(texts, Engine(), notes, Totals()) is FinishReason.CANCELLED
    assert len(notes) == told


def test_the_echo_finds_alike_what_is_alike() -> None:
    """So that whoever tries the API sees something that makes sense; the same every time."""
    engine = EchoEngine(Model(id="echo", engine="echo", folder=Path("/nowhere")))
    texts = [
        "The cat sat on the mat.",
        "A cat sits on a mat.",
        "Quarterly revenue grew by 12 %.",
        "The cat sat on the mat.",
    ]
    prepared = PreparedTexts(tuple(tuple(text.encode()) for text in texts), None)
    notes = Notes()
    run(prepared, engine, notes, Totals())
    one, like, other, again = (vector for _, vector in vectors(notes))
    assert one == again
    assert sum(a * b for a, b in zip(one, like, strict=True)) > sum(a * b for a, b in zip(one, other, strict=True))


def test_what_was_sent_by_an_earlier_claim_is_not_read_again() -> None:
    """Its client has it, and its tokens count once."""
    notes, totals = Notes(), Totals()
    prepared = PreparedTexts(((1, 2), (3, 4), (5, 6)), None)
    assert run(prepared, Engine(), notes, totals, Begun(done={0, 2})) is FinishReason.STOP
    assert [event.index for event in notes if isinstance(event, Embedded)] == [1]
    assert totals.usage() == Usage(6, 0, 0)
