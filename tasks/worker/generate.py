"""The heart of a worker: a prepared request and an engine in, events out. No Celery, no Redis, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from npu.constraint import Calls
from npu.engine import Abortable, End, Generation, Stats, TextEngine, Tokenizer
from npu.errors import FieldRefused, SamplingRefused
from tasks.events import ChoiceEnded, Event, FinishReason, TextDelta, TokenLogprob, Usage
from tasks.prompting.prepare import Prepared
from tasks.stream import RecordedPiece
from tasks.worker.begun import Begun, BegunChoice, CannotContinue
from tasks.worker.parsing.answer import answer_parser
from tasks.worker.token_logprobs import TokenLogprobs, logprob_of, rest_of
from tasks.worker.unsent import unsent


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
    parked_tokens: int = 0
    """Of those: the ones that others had displaced, and that were loaded again."""
    completion_tokens: int = 0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    reasoning_tokens: int = 0
    """Of the completion's."""
    left_out: int = 0
    """Tokens of the request that did not fit."""
    read_again: int = 0
    """Tokens that were prefilled once more, since an answer went on behind an interruption."""
    memory_mb: float = 0.0
    """The most that the runtime held; 0 where it does not tell."""

    def add(self, stats: Stats, tokens: int, first_of_prompt: bool) -> None:
        """Count one generation with `tokens` in its answer. A prompt answered n times counts once, as clients expect."""
        if first_of_prompt:
            self.prompt_tokens += stats.prompt_tokens
            self.cached_tokens += stats.cached_tokens
            self.parked_tokens += stats.parked_tokens
        self.completion_tokens += tokens
        self.prefill_ms += stats.prefill_ms
        self.decode_ms += stats.decode_ms
        self.memory_mb = max(self.memory_mb, stats.memory_mb)

    def usage(self) -> Usage:
        """The counts a client is told."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            reasoning_tokens=self.reasoning_tokens,
            left_out=self.left_out,
            parked_tokens=self.parked_tokens,
        )


def run(
    prepared: Prepared, engine: TextEngine, sink: Sink, totals: Totals, begun: Begun | None = None, *, job: str = ""
) -> FinishReason:
    """Generate every choice in turn; the reason of the last, or CANCELLED. What it cost is added to `totals`; of a
    generation that raised, its tokens. Calls of tools have ids that follow from `job`.

    What earlier claims have `begun` is not said again: the run goes on behind it, as if it had never been interrupted.
    Raises what the engine and the sink raise, and `CannotContinue`.
    """
    begun = begun or Begun()
    reason = FinishReason.STOP
    for index in range(len(prepared.prompts)):
        for turn in range(prepared.n):
            answer = _Answer(job, prepared, index, turn, begun.choice(index * prepared.n + turn))
            if answer.begun.ended is not None:
                reason = answer.begun.ended.reason
                answer.count_ended(totals)
                continue
            last = answer.run(engine, sink, totals)
            if last is None:
                return FinishReason.CANCELLED
            # With what was held back until now, in one write: a claim that dies leaves both or none.
            sink.write((*last.held, last.ended))
            reason = last.ended.reason
    return reason


@dataclass(frozen=True, slots=True)
class _Last:
    """How an answer ends: what was held back of it, and its last event."""

    held: tuple[Event, ...]
    ended: ChoiceEnded


class _Answer:
    """The `turn`-th answer to one prompt."""

    def __init__(self, job: str, prepared: Prepared, index: int, turn: int, begun: BegunChoice) -> None:
        self.choice = index * prepared.n + turn
        self.begun = begun
        self._prompt = prepared.prompts[index]
        self._sampling = prepared.sampling_of(self.choice)
        self._echo = prepared.echoes[index].decode("utf-8", "replace") if prepared.echoes is not None else ""
        self._reading = prepared.reading
        self._budget = prepared.reading.budget if prepared.reading is not None else None
        self._may_stop = bool(prepared.stop) or prepared.reading is not None
        self._parser = answer_parser(job, self.choice, prepared.stop, prepared.reading)
        self._logprobs = TokenLogprobs() if prepared.sampling.logprobs is not None else None
        self._first = turn == 0
        self._said = [piece.token for piece in begun.pieces]
        self._stats: Stats | None = None
        """Of the runs so far."""
        self._prefilled = 0
        """Tokens of the prompt that the engine says are done, while it says so."""

    def run(self, engine: TextEngine, sink: Sink, totals: Totals) -> _Last | None:
        """Say what is left of it, but for its last words; None once the job was cancelled."""
        said: list[Event] = [TextDelta(self._echo, self.choice)] if self._echo else []
        said.extend(self._replayed())
        rest: Sequence[Event] = unsent(said, self.begun.sent)
        if self._logprobs is not None:
            self._logprobs.owe(rest_of(said, self.begun.sent))
            rest = self._logprobs.told(rest)
        if rest:
            sink.write(tuple(rest))
        while True:
            self._end_thought(sink)
            if self._parser.stopped or self._left < 1:
                self._count(totals)
                return self._end(End.LENGTH)
            generation = self._generation(engine, sink)
            if not sink.begin(generation):
                if self._stats is not None:
                    self._count(totals)
                return None
            try:
                self._read(generation, sink, engine.tokenizer)
            except BaseException:
                # The engine's own account is there only after its end. A prompt that was answered has been read.
                self._count(totals)
                raise
            # What a run behind the first one reads, the first one has read or said.
            stats = generation.stats
            first = self._stats
            self._stats = (
                stats
                if first is None
                else replace(
                    first,
                    prefill_ms=first.prefill_ms + stats.prefill_ms,
                    decode_ms=first.decode_ms + stats.decode_ms,
                )
            )
            if sink.cancelled or not self._overthought:
                self._count(totals)
                return None if sink.cancelled else self._end(generation.end)

    def count_ended(self, totals: Totals) -> None:
        """Add what it cost, of an answer that was whole already."""
        if self._reading is not None:  # thoughts are to be told apart
            self._replayed()
        self._count(totals)

    def _replayed(self) -> list[Event]:
        return [event for piece in self.begun.pieces for event in self._events(piece.token, piece.data, piece.logprob)]

    def _events(self, token: int, data: bytes, logprob: TokenLogprob | None) -> tuple[Event, ...]:
        events = self._parser.feed(token, data)
        if self._logprobs is None:
            return events
        self._logprobs.heard(data, logprob)
        return self._logprobs.told(events)

    @property
    def _left(self) -> int:
        """Tokens it may still have."""
        return self._prompt.max_tokens - len(self._said)

    @property
    def _overthought(self) -> bool:
        """It is inside a thought that has had its tokens."""
        return self._budget is not None and self._parser.thinking and self._parser.thoughts >= self._budget

    def _end_thought(self, sink: Sink) -> None:
        """Say for the model what ends its thought, where that has had its tokens. A part of it may have been said."""
        while self._overthought and self._left and not sink.cancelled:
            closing = self._reading.closing if self._reading is not None else ()
            tokens = [token for token, _ in closing]
            done = max(count for count in range(len(tokens)) if self._said[len(self._said) - count :] == tokens[:count])
            token, data = closing[done]
            self._said.append(token)
            sink.write(self._events(token, data, None), RecordedPiece(self.choice, token, data))

    def _generation(self, engine: TextEngine, sink: Sink) -> Generation:
        if self._said and self._prompt.turn is not None:
            raise CannotContinue(
                "A part of this answer was sent, and its model has no tokenizer.json beside it, so nobody but the NPU's runtime "
                "knows the prompt's tokens, and it cannot be gone on with. Ask again."
            )
        prompt = self._prompt
        if self._said:
            said = self._said
            prompt = replace(prompt, tokens=[*prompt.tokens, *said], max_tokens=self._left, said=len(said))

        def prefilled(tokens: int) -> None:
            self._prefilled = tokens
            sink.prefilled(tokens)

        try:
            return engine.generate(prompt, self._sampling, prefilled)
        except SamplingRefused as refused:
            held = self._sampling.constraint
            if (
                refused.field == "constraint"
                and held is not None
                and isinstance(held.form, Calls)
                and not held.form.otherwise
            ):
                # In the words of who asked for it.
                raise FieldRefused("tool_choice" if held.form.required else "strict", refused.why) from refused
            raise

    def _count(self, totals: Totals) -> None:
        """Add what it cost; where the engine has no account of it, as far as is known."""
        stats, tokens = self._stats, len(self._said)
        known = self._prompt.turn is None
        prompt = len(self._prompt.tokens) if known or stats is None else stats.prompt_tokens
        if stats is None:
            stats = Stats(prompt if tokens or self.begun.ended else 0, 0, 0.0, 0, 0.0)
        again = 0
        if self.begun.pieces and stats.prompt_tokens > prompt:
            read = stats.prompt_tokens if tokens > len(self.begun.pieces) else self._prefilled
            again = max(0, read - stats.cached_tokens)
        # To its client an interrupted answer is one answer to one prompt, however often that had to be read.
        seen = replace(
            stats,
            prompt_tokens=min(stats.prompt_tokens, prompt),
            cached_tokens=min(stats.cached_tokens, prompt),
        )
        totals.add(seen, tokens, first_of_prompt=self._first)
        totals.reasoning_tokens += self._parser.thoughts
        totals.read_again += again

    def _read(self, generation: Generation, sink: Sink, tokenizer: Tokenizer) -> None:
        parser, logs, enough = self._parser, self._logprobs is not None, False
        for piece in generation:
            if enough or sink.cancelled:
                continue  # the abort is on its way; what the engine still says is not part of the answer
            self._said.append(piece.token)
            if logs:
                logprob = logprob_of(piece, tokenizer)
                events = self._events(piece.token, piece.data, logprob)
                sink.write(events, RecordedPiece(self.choice, piece.token, piece.data, logprob))
            else:
                events = parser.feed(piece.token, piece.data)
                sink.write(events, RecordedPiece(self.choice, piece.token, piece.data))
            if self._may_stop and (parser.stopped or self._overthought):
                enough = True
                generation.abort()

    def _end(self, end: End) -> _Last:
        held, parser = self._parser.finish(), self._parser
        if self._logprobs is not None:
            self._logprobs.ended()
            held = self._logprobs.told(held)
        reason = FinishReason.TOOL_CALLS if parser.calls else FinishReason.STOP
        if end is End.LENGTH and not parser.stopped:
            reason = FinishReason.LENGTH
        return _Last(held, ChoiceEnded(self.choice, reason, parser.stopped_by))
