"""A sink for a run's events that knows what a client can read."""

from __future__ import annotations

from collections.abc import Callable

from npu.engine import Abortable
from tasks.events import ChoiceEnded, Event, ReasoningDelta, Reply, TextDelta, ToolCallDelta, ToolCallStarted, fold
from tasks.stream import RecordedPiece


class Transcript(list[Event]):
    """Collects the events of one run, and refuses a sequence that no client could read.

    With `cancel_at`, the job is cancelled once it has that many pieces (0: before anything begins), and the generation that
    runs is aborted as its owner would abort it.
    """

    def __init__(self, *, cancel_at: int | None = None) -> None:
        super().__init__()
        self.pieces: list[RecordedPiece] = []
        self.writes: list[tuple[tuple[Event, ...], RecordedPiece | None]] = []
        self.begun: list[Abortable] = []
        self.progress: list[int] = []
        self.on_piece: Callable[[], None] = lambda: None
        self._cancel_at = cancel_at
        self.already = 0
        """Choices that had ended before this run."""
        self.forced = False
        """Tokens may be said before any generation begins: they were said for the model."""
        self.calls: dict[int, int] = {}
        """How many calls have begun in each choice; a test puts in those that began before this run."""

    @property
    def cancelled(self) -> bool:
        return self._cancel_at is not None and len(self.pieces) >= self._cancel_at

    def begin(self, work: Abortable) -> bool:
        self.begun.append(work)
        return not self.cancelled

    def prefilled(self, tokens: int) -> None:
        self.progress.append(tokens)

    def write(self, events: tuple[Event, ...], piece: RecordedPiece | None = None) -> None:
        assert events or piece, "nothing to write"
        self.writes.append((events, piece))
        for event in events:
            self._check(event)
            self.append(event)
        if piece is not None:
            assert self.begun or self.forced, f"{piece} of no generation"
            assert not self.cancelled, f"{piece} after the cancellation"
            self.pieces.append(piece)
            if self.cancelled and self.begun:
                self.begun[-1].abort()
            self.on_piece()

    def _check(self, event: Event) -> None:
        ended = [*range(self.already), *(past.choice for past in self if isinstance(past, ChoiceEnded))]
        match event:
            case TextDelta(text, choice) | ReasoningDelta(text, choice) | ToolCallDelta(_, text, choice):
                assert text, "an empty delta"
                assert choice == len(ended), f"{event} while choice {len(ended)} is being answered"
                if isinstance(event, ToolCallDelta):
                    assert event.index == self.calls.get(choice, 0) - 1, f"{event} of no call"
            case ToolCallStarted(index, _, _, choice):
                assert choice == len(ended), f"{event} while choice {len(ended)} is being answered"
                assert index == self.calls.get(choice, 0), f"{event} out of turn"
                self.calls[choice] = index + 1
            case ChoiceEnded(choice):
                assert choice == len(ended), f"{event} after {ended}"
            case _:
                raise AssertionError(f"{event} is not a run's to write")

    @property
    def reply(self) -> Reply:
        """What a client makes of it."""
        return fold(self)

    @property
    def texts(self) -> list[str]:
        """The text of each choice."""
        return [choice.text for choice in self.reply.choices.values()]

    def piece_text(self, choice: int) -> bytes:
        """The bytes the record keeps of a choice, visible or not."""
        return b"".join(piece.data for piece in self.pieces if piece.choice == choice)
