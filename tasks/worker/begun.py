"""What earlier claims of a job left in its record: the part of its answer that is there already, and goes on from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import redis

from tasks import keys
from tasks.events import (
    ChoiceEnded,
    Embedded,
    Event,
    ReasoningDelta,
    Scored,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    decode_events,
)
from tasks.record_size import ENTRY
from tasks.stream import RecordedPiece, decode_pieces


class CannotContinue(Exception):
    """Raised when an answer of which a part was sent cannot be gone on with here; the message is for its client."""


@dataclass
class BegunChoice:
    """One of a job's answers, as far as it got."""

    sent: list[Event] = field(default_factory=list)
    """What was sent of it: texts, thoughts and calls."""
    pieces: list[RecordedPiece] = field(default_factory=list)
    """Every token the engine gave for it, sent or held back."""
    ended: ChoiceEnded | None = None


@dataclass
class Begun:
    """Everything that was done of a job."""

    choices: dict[int, BegunChoice] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    """Inputs whose vectors, or documents whose scores, were sent."""
    size: int = 0
    """Bytes of the record that it takes."""

    def choice(self, index: int) -> BegunChoice:
        """That answer; one of which nothing is there is empty."""
        return self.choices.get(index) or BegunChoice()


def read_begun(client: redis.Redis, job: str) -> Begun:
    """What the record holds of the answer. Raises `Unreadable`."""
    begun = Begun()
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(keys.events(job)))
    for _, fields in entries:
        begun.size += sum(map(len, fields.values())) + ENTRY
        for event in decode_events(fields[b"e"]) if fields[b"e"] else ():
            match event:
                case TextDelta() | ReasoningDelta() | ToolCallStarted() | ToolCallDelta():
                    begun.choices.setdefault(event.choice, BegunChoice()).sent.append(event)
                case ChoiceEnded(choice):
                    begun.choices.setdefault(choice, BegunChoice()).ended = event
                case Embedded(index) | Scored(index):
                    begun.done.add(index)
        for piece in decode_pieces(fields.get(b"p", b"")):
            begun.choices.setdefault(piece.choice, BegunChoice()).pieces.append(piece)
    return begun
