"""The heart of a worker: a prepared request and an engine in, events out. No Celery, no Redis, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from npu.engine import Abortable, End, Prompt, Stats, TextEngine
from tasks.events import ChoiceEnded, Event, FinishReason, TextDelta, Usage
from tasks.prompting.prepare import Prepared
from tasks.stream import RecordedPiece
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


def run(prepared: Prepared, engine: TextEngine, sink: Sink, totals: Totals) -> FinishReason:
    """Generate every choice in turn; the reason of the last, or CANCELLED. What it cost is added to `totals`; of a
    generation that raised, its tokens. Raises what the engine and the sink raise."""
    reason = FinishReason.STOP
    for index, prompt in enumerate(prepared.prompts):
        for turn in range(prepared.n):
            choice = index * prepared.n + turn
            if prepared.echoes is not None:
                sink.write((TextDelta(prepared.echoes[index].decode("utf-8", "replace"), choice),))
            reason, stopped_by = _answer(prompt, choice, prepared, engine, sink, totals, first=turn == 0)
            if reason is FinishReason.CANCELLED:
                return reason
            sink.write((ChoiceEnded(choice, reason, stopped_by),))
    return reason


def _answer(
    prompt: Prompt, choice: int, prepared: Prepared, engine: TextEngine, sink: Sink, totals: Totals, *, first: bool
) -> tuple[FinishReason, str | None]:
    parser = TextParser(prepared.stop)
    generation = engine.generate(prompt, prepared.sampling_of(choice), sink.prefilled)
    if not sink.begin(generation):
        return FinishReason.CANCELLED, None
    tokens = 0
    try:
        for piece in generation:
            if parser.stopped_by is not None or sink.cancelled:
                continue  # the abort is on its way; what the engine still says is not part of the answer
            tokens += 1
            text = parser.feed(piece.data)
            recorded = RecordedPiece(choice, piece.token, piece.data)
            sink.write((TextDelta(text, choice),) if text else (), recorded)
            if parser.stopped_by is not None:
                generation.abort()
    except BaseException:
        # The engine's own account is there only after its end. A prompt that was answered has been read.
        totals.add(Stats(len(prompt.tokens) if tokens else 0, 0, 0.0, tokens, 0.0), tokens, first_of_prompt=first)
        raise
    totals.add(generation.stats, tokens, first_of_prompt=first)
    if sink.cancelled:
        return FinishReason.CANCELLED, None
    if text := parser.finish():
        sink.write((TextDelta(text, choice),))
    if parser.stopped_by is not None:
        return FinishReason.STOP, parser.stopped_by
    return (FinishReason.LENGTH if generation.end is End.LENGTH else FinishReason.STOP), None
