"""One answer, made into events token by token."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from tasks.events import Event, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallStarted
from tasks.prompting.reading import Reading
from tasks.worker.parsing.calls import Argued, Called, CallReader, Part, Said
from tasks.worker.parsing.formats import call_reader
from tasks.worker.parsing.text import StopFinder, TextParser
from tasks.worker.parsing.thoughts import Stage, Thoughts


class AnswerParser(Protocol):
    """Makes events of tokens. The same tokens give the same events, whoever feeds them."""

    @property
    def stopped(self) -> bool:
        """The answer has ended, whatever the engine still says."""

    @property
    def stopped_by(self) -> str | None:
        """The stop sequence that ended it, if one did."""

    @property
    def calls(self) -> int:
        """Calls of tools so far."""

    @property
    def thinking(self) -> bool:
        """It is inside a thought."""

    @property
    def thoughts(self) -> int:
        """Tokens of the thought so far, its marks among them."""

    def feed(self, token: int, data: bytes) -> tuple[Event, ...]:
        """What is certain after this token. Nothing once it has stopped."""

    def finish(self) -> tuple[Event, ...]:
        """What was held back, now that nothing follows."""


class PlainAnswer:
    """Of a model that neither thinks nor is given tools: nothing but text."""

    calls = 0
    thinking = False
    thoughts = 0

    def __init__(self, choice: int, stop: Sequence[str]) -> None:
        self._choice = choice
        self._text = TextParser(stop)

    @property
    def stopped(self) -> bool:
        return self._text.stopped_by is not None

    @property
    def stopped_by(self) -> str | None:
        return self._text.stopped_by

    def feed(self, token: int, data: bytes) -> tuple[Event, ...]:
        text = self._text.feed(data)
        return (TextDelta(text, self._choice),) if text else ()

    def finish(self) -> tuple[Event, ...]:
        text = self._text.finish()
        return (TextDelta(text, self._choice),) if text else ()


class MarkedAnswer:
    """Of one in which there may be thoughts and calls. Stop sequences are looked for in its visible text alone."""

    def __init__(self, choice: int, stop: Sequence[str], reading: Reading, call_id: Callable[[int], str]) -> None:
        """`call_id` gives the id of each call by its index."""
        self.calls = 0
        self.thoughts = 0
        self._choice = choice
        self._call_id = call_id
        self._markers = reading.markers
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopFinder(stop)
        self._tokens = 0
        form = reading.thinking
        self._thoughts = Thoughts(form, reading.thought_begun) if form is not None else None
        self._reader: CallReader | None = None
        if reading.calls is not None:
            self._reader = call_reader(reading.calls, reading.tools, reading.most_calls, alone=reading.alone)

    @property
    def stopped(self) -> bool:
        return self._stop.stopped_by is not None or (self._reader is not None and self._reader.full)

    @property
    def stopped_by(self) -> str | None:
        return self._stop.stopped_by

    @property
    def thinking(self) -> bool:
        return self._thoughts is not None and self._thoughts.stage is Stage.THINKING

    def feed(self, token: int, data: bytes) -> tuple[Event, ...]:
        self._tokens += 1
        return self._advance(self._decoder.decode(data or self._markers.get(token, b"")))

    def finish(self) -> tuple[Event, ...]:
        events = list(self._advance(self._decoder.decode(b"", final=True)))
        if self._thoughts is not None:
            thought, text = self._thoughts.finish()
            self._think(thought, events)
            self._answer(text, events)
        if self._reader is not None and not self.stopped:
            self._write(self._reader.finish(), events)
        if not self.stopped:
            self._say(self._stop.finish(), events)
        return tuple(events)

    def _advance(self, text: str) -> tuple[Event, ...]:
        events: list[Event] = []
        if self._thoughts is not None and self._thoughts.stage is not Stage.ANSWERING:
            before = self._thoughts.stage
            thought, text = self._thoughts.feed(text)
            if before is Stage.THINKING:
                self.thoughts += 1
            elif self._thoughts.thought:
                self.thoughts = self._tokens
            self._think(thought, events)
        elif self._thoughts is not None:
            _, text = self._thoughts.feed(text)
        self._answer(text, events)
        return tuple(events)

    def _think(self, thought: str, events: list[Event]) -> None:
        if thought:
            events.append(ReasoningDelta(thought, self._choice))

    def _answer(self, text: str, events: list[Event]) -> None:
        if not text or self.stopped:
            return
        if self._reader is None:
            self._say(self._stop.feed(text), events)
        else:
            self._write(self._reader.feed(text), events)

    def _write(self, parts: list[Part], events: list[Event]) -> None:
        for part in parts:
            match part:
                case Said(text):
                    self._say(self._stop.feed(text), events)
                    if self._stop.stopped_by is not None:
                        return
                case Called(name):
                    self._say(self._stop.finish(), events)  # no stop sequence reaches over a call
                    index, self.calls = self.calls, self.calls + 1
                    events.append(ToolCallStarted(index, self._call_id(index), name, self._choice))
                case Argued(text):
                    events.append(ToolCallDelta(self.calls - 1, text, self._choice))

    def _say(self, text: str, events: list[Event]) -> None:
        if text:
            events.append(TextDelta(text, self._choice))


def answer_parser(job: str, choice: int, stop: Sequence[str], reading: Reading | None) -> AnswerParser:
    """For one answer of a job."""
    if reading is None:
        return PlainAnswer(choice, stop)
    return MarkedAnswer(choice, stop, reading, lambda index: call_id(job, choice, index))


def call_id(job: str, choice: int, index: int) -> str:
    """The id of a call: as hard to guess as the job's, and the same when the answer is gone on with."""
    return "call_" + hashlib.sha256(f"{job} {choice} {index}".encode()).hexdigest()[:24]
