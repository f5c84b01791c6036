"""The heart of a worker: a prepared request and an engine in, events out. No Celery, no Redis, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from npu.engine import Abortable, End, Generation, Stats, TextEngine
from tasks.events import ChoiceEnded, Event, FinishReason, TextDelta, Usage
from tasks.prompting.prepare import Prepared
from tasks.stream import RecordedPiece
from tasks.worker.begun import Begun, BegunChoice, CannotContinue
from tasks.worker.parsing import TextParser


class Sink(Protocol):
    """Where a run's events go, and where it learns that it is to end."""

    @property
    def cancelled(self) -> bool:
        """Somebody asked for the job's end."""

    def begin(self, work: Abortable) -> bool:
        """The engine is about to run this; from now on a cancel must abort it. False: it must not begin."""

    def prefilled(self, tokens: int) -> None:
        """So many tokens of the prompt are done."""

    def write(self, events: tuple[Event, ...], piece: RecordedPiece | None = None) -> None:
        """Events, and the piece they came from."""


@dataclass
class Totals:
    """What all generations of a job cost together. Milliseconds and tokens, by the engine's clock."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    read_again: int = 0
    """Tokens that were prefilled once more, since an answer went on behind an interruption."""

    def add(self, stats: Stats, tokens: int, first_of_prompt: bool) -> None:
        """Count one generation with `tokens` in its answer. A prompt answered n times counts once, as clients expect."""
        if first_of_prompt:
            self.prompt_tokens += stats.prompt_tokens
            self.cached_tokens += stats.cached_tokens
        self.completion_tokens += tokens
        self.prefill_ms += stats.prefill_ms
        self.decode_ms += stats.decode_ms

    def usage(self) -> Usage:
        """The counts a client is told."""
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens)


def run(prepared: Prepared, engine: TextEngine, sink: Sink, totals: Totals, begun: Begun | None = None) -> FinishReason:
    """Generate every choice in turn; the reason of the last, or CANCELLED. What it cost is added to `totals`; of a
    generation that raised, its tokens.

    What earlier claims have `begun` is not said again: the run goes on behind it, as if it had never been interrupted.
    Raises what the engine and the sink raise, and `CannotContinue`.
    """
    begun = begun or Begun()
    reason = FinishReason.STOP
    for index in range(len(prepared.prompts)):
        for turn in range(prepared.n):
            answer = _Answer(prepared, index, turn, begun.choice(index * prepared.n + turn))
            if answer.begun.ended is not None:
                reason = answer.begun.ended.reason
                answer.count(totals, None)
                continue
            last = answer.run(engine, sink, totals)
            if last is None:
                return FinishReason.CANCELLED
            # With what was held back until now, in one write: a claim that dies leaves both or none.
            sink.write((TextDelta(last.text, answer.choice), last.ended) if last.text else (last.ended,))
            reason = last.ended.reason
    return reason


@dataclass(frozen=True, slots=True)
class _Last:
    """How an answer ends: what was held back of it, and its last event."""

    text: str
    ended: ChoiceEnded


class _Answer:
    """The `turn`-th answer to one prompt."""

    def __init__(self, prepared: Prepared, index: int, turn: int, begun: BegunChoice) -> None:
        self.choice = index * prepared.n + turn
        self.begun = begun
        self._prompt = prepared.prompts[index]
        self._sampling = prepared.sampling_of(self.choice)
        self._echo = prepared.echoes[index].decode("utf-8", "replace") if prepared.echoes is not None else ""
        self._parser = TextParser(prepared.stop)
        self._first = turn == 0
        self._tokens = len(begun.pieces)
        self._prefilled = 0
        """Tokens of the prompt that the engine says are done, while it says so."""

    def run(self, engine: TextEngine, sink: Sink, totals: Totals) -> _Last | None:
        """Say what is left of it, but for its last words; None once the job was cancelled."""
        said = [piece.token for piece in self.begun.pieces]
        text = self._echo + "".join(self._parser.feed(piece.data) for piece in self.begun.pieces)
        if not text.startswith(self.begun.text):
            raise CannotContinue(
                "What is on record of this answer does not spell what was sent of it, as when two versions of the service "
                "work side by side, so it cannot be gone on with. Ask again."
            )
        if unsent := text[len(self.begun.text) :]:
            sink.write((TextDelta(unsent, self.choice),))
        left = self._prompt.max_tokens - len(said)
        if self._parser.stopped_by is not None or left < 1:
            self.count(totals, None)
            return self._end(End.LENGTH)
        if said and self._prompt.turn is not None:
            raise CannotContinue(
                "A part of this answer was sent, and its model has no tokenizer.json beside it, so nobody but the NPU's runtime "
                "knows the prompt's tokens, and it cannot be gone on with. Ask again."
            )
        prompt = self._prompt
        if said:
            prompt = replace(prompt, tokens=[*prompt.tokens, *said], max_tokens=left, said=len(said))

        def prefilled(tokens: int) -> None:
            self._prefilled = tokens
            sink.prefilled(tokens)

        generation = engine.generate(prompt, self._sampling, prefilled)
        if not sink.begin(generation):
            return None
        try:
            self._read(generation, sink)
        except BaseException:
            # The engine's own account is there only after its end. A prompt that was answered has been read.
            self.count(totals, None)
            raise
        self.count(totals, generation.stats)
        return None if sink.cancelled else self._end(generation.end)

    def count(self, totals: Totals, stats: Stats | None) -> None:
        """Add what it cost; `stats` None when the engine has no account of it."""
        known = self._prompt.turn is None
        prompt = len(self._prompt.tokens) if known or stats is None else stats.prompt_tokens
        if stats is None:
            stats = Stats(prompt if self._tokens or self.begun.ended else 0, 0, 0.0, 0, 0.0)
        again = 0
        if self.begun.pieces and stats.prompt_tokens > prompt:
            read = stats.prompt_tokens if self._tokens > len(self.begun.pieces) else self._prefilled
            again = max(0, read - stats.cached_tokens)
        # To its client an interrupted answer is one answer to one prompt, however often that had to be read.
        seen = replace(
            stats,
            prompt_tokens=min(stats.prompt_tokens, prompt),
            cached_tokens=min(stats.cached_tokens, prompt),
        )
        totals.add(seen, self._tokens, first_of_prompt=self._first)
        totals.read_again += again

    def _read(self, generation: Generation, sink: Sink) -> None:
        for piece in generation:
            if self._parser.stopped_by is not None or sink.cancelled:
                continue  # the abort is on its way; what the engine still says is not part of the answer
            self._tokens += 1
            text = self._parser.feed(piece.data)
            recorded = RecordedPiece(self.choice, piece.token, piece.data)
            sink.write((TextDelta(text, self.choice),) if text else (), recorded)
            if self._parser.stopped_by is not None:
                generation.abort()

    def _end(self, end: End) -> _Last:
        text, stopped_by = self._parser.finish(), self._parser.stopped_by
        long = stopped_by is None and end is End.LENGTH
        return _Last(text, ChoiceEnded(self.choice, FinishReason.LENGTH if long else FinishReason.STOP, stopped_by))
