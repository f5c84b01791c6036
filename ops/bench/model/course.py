"""What a model is asked, in which order, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from ops.bench.model.prompts import Asked, Conversation, LongContext, Prompts, Reference
from ops.bench.model.sample import Asker, Place, Sample
from ops.service import ServiceError

KINDS = {
    "performance": ("performance", "reference", "long_context", "multi_turn"),
    "quality": ("quality", "long_context", "multi_turn"),
    "all": ("performance", "reference", "quality", "long_context", "multi_turn"),
}
"""The sets of prompts that belong to each type."""
WARM_UP = "Say hello."
MARGIN = 64
"""Tokens of a context that a long prompt and its answer leave free."""
CLOSE = 8
"""Tries to cut a text to a number of tokens."""


class Round(msgspec.Struct, frozen=True):
    """Several answers that were asked for at once."""

    concurrency: int
    run: int
    seconds: float
    """Until the last one had ended."""
    tokens: int
    """Said by all of them."""
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is asked."""

    runs: int
    concurrency: tuple[int, ...]
    longest: int | None = None
    """Tokens of the longest prompt; None is as long as the context."""


class Course:
    """Asks a model everything, an answer at a time or several at once; what was measured is in its attributes then."""

    def __init__(self, asker: Asker, prompts: Prompts, kind: str, scale: Scale, context: int) -> None:
        """`context` is what the model holds, in tokens."""
        self._asker = asker
        self._prompts = prompts
        self._sets = KINDS[kind]
        self._scale = scale
        self._context = context
        self.samples: list[Sample] = []
        self.rounds: list[Round] = []
        self.notes: list[str] = []

    def answers(self) -> int:
        """How many will be asked for."""
        runs, prompts = self._scale.runs, self._prompts
        count = {
            "performance": runs * (len(prompts.performance) + sum(self._levels())),
            "reference": runs if prompts.reference is not None else 0,
            "quality": len(prompts.quality),
            "long_context": runs * len(self._lengths()),
            "multi_turn": runs * sum(len(each.turns) for each in prompts.multi_turn),
        }
        return sum(count[each] for each in self._sets)

    def run(self, done: Callable[[str, int], None]) -> None:
        """Ask; `done` is told how many answers of which set have ended since it was told last."""
        steps: dict[str, Callable[[], Iterator[Sequence[Sample]]]] = {
            "performance": self._performance,
            "reference": self._reference,
            "quality": self._quality,
            "long_context": self._long_context,
            "multi_turn": self._multi_turn,
        }
        for name in self._sets:
            for samples in steps[name]():
                self.samples += samples
                done(name, len(samples))

    def warm_up(self) -> Sample:
        """Have the model loaded, and everything that is done for the first time done once."""
        return self._asker.ask(Place("warm_up", "warm_up", 1), [_user(WARM_UP)], 8)

    def _levels(self) -> tuple[int, ...]:
        return tuple(level for level in self._scale.concurrency if level > 1) if self._prompts.performance else ()

    def _lengths(self) -> list[int]:
        long = self._prompts.long_context
        if long is None:
            return []
        room = min(self._context - long.max_tokens - MARGIN, self._scale.longest or self._context)
        return [tokens for tokens in long.tokens if tokens <= room]

    def _runs(self) -> range:
        return range(1, self._scale.runs + 1)

    def _performance(self) -> Iterator[Sequence[Sample]]:
        for run in self._runs():
            for asked in self._prompts.performance:
                yield [self._perform(asked, run, 1)]
        for level in self._levels():
            for run in self._runs():
                yield self._together(level, run)

    def _together(self, level: int, run: int) -> list[Sample]:
        prompts = self._prompts.performance
        begun = time.perf_counter()
        with ThreadPoolExecutor(level) as pool:
            asked = [
                pool.submit(self._perform, prompts[(run + number) % len(prompts)], run, level)
                for number in range(level)
            ]
            try:
                samples = [each.result() for each in asked]
            except BaseException:
                self._asker.stop()
                raise
        seconds = time.perf_counter() - begun
        tokens = sum(sample.completion_tokens or 0 for sample in samples)
        self.rounds.append(Round(level, run, round(seconds, 3), tokens, round(tokens / seconds, 3)))
        return samples

    def _perform(self, asked: Asked, run: int, level: int) -> Sample:
        messages = [_user(self._asker.marked(asked.prompt))]
        place = Place("performance", asked.id, run, level)
        return self._asker.ask(place, messages, asked.max_tokens, checks=asked.checks)

    def _reference(self) -> Iterator[Sequence[Sample]]:
        reference = self._prompts.reference
        if reference is None:
            return
        cached = (self.samples[-1].cached_tokens or 0) if self.samples else 0
        for run in self._runs():
            try:
                messages = self._cut(reference, reference.prompt_tokens + cached)
            except ServiceError as error:
                self.notes.append(f"The reference prompt was left out, since its tokens cannot be counted: {error}")
                yield [_failed("reference", run, str(error)) for run in range(run, self._scale.runs + 1)]
                return
            place = Place("reference", "reference", run)
            sample = self._asker.ask(place, messages, reference.max_tokens)
            # What the chat template begins with is in the cache from the second time on; as many are to be read each time.
            cached = sample.cached_tokens or 0
            yield [sample]

    def _cut(self, reference: Reference, tokens: int) -> list[dict[str, str]]:
        """The text, cut to a conversation of so many tokens, or as close as some tries come to it."""
        text = self._asker.marked(reference.text)
        least, most = 1, len(text)
        best: tuple[int, list[dict[str, str]]] | None = None
        while least <= most:
            middle = (least + most) // 2
            messages = [_user(text[:middle])]
            count = self._asker.count(messages)
            if best is None or abs(count - tokens) < best[0]:
                best = abs(count - tokens), messages
            if count == tokens:
                break
            least, most = (middle + 1, most) if count < tokens else (least, middle - 1)
        assert best is not None
        return best[1]

    def _quality(self) -> Iterator[Sequence[Sample]]:
        for asked in self._prompts.quality:
            place = Place("quality", asked.id, 1)
            yield [self._asker.ask(place, [_user(asked.prompt)], asked.max_tokens, greedy=True, checks=asked.checks)]

    def _long_context(self) -> Iterator[Sequence[Sample]]:
        long = self._prompts.long_context
        if long is None:
            return
        if left_out := [str(tokens) for tokens in long.tokens if tokens not in self._lengths()]:
            self.notes.append(f"Prompts of {', '.join(left_out)} tokens were left out: the context, or --quick.")
        for tokens in self._lengths():
            try:
                lines = self._lines(long, tokens)
            except ServiceError as error:
                yield [_failed("long_context", run, str(error)) for run in self._runs()]
                continue
            for run in self._runs():
                messages = [_user(self._asker.marked(long.text(lines)))]
                place = Place("long_context", str(tokens), run)
                yield [self._asker.ask(place, messages, long.max_tokens, greedy=True, checks=long.checks)]

    def _lines(self, long: LongContext, tokens: int) -> int:
        """Lines of a prompt of about so many tokens, and of no more."""
        few, lines = 1, 1
        for lines in (16, 64):
            count = self._asker.count([_user(long.text(lines))])
            if count >= tokens:
                break
            few = lines
        for _ in range(CLOSE):
            wanted = max(few, int(lines * tokens / count))
            if wanted == lines:
                break
            lines = wanted
            count = self._asker.count([_user(long.text(lines))])
        while count > tokens and lines > 1:
            lines -= 1
            count = self._asker.count([_user(long.text(lines))])
        return lines

    def _multi_turn(self) -> Iterator[Sequence[Sample]]:
        for run in self._runs():
            for conversation in self._prompts.multi_turn:
                yield from ([sample] for sample in self._converse(conversation, run))

    def _converse(self, conversation: Conversation, run: int) -> Iterator[Sample]:
        messages: list[dict[str, str]] = []
        for number, turn in enumerate(conversation.turns, 1):
            text = turn.prompt if messages else self._asker.marked(turn.prompt)
            messages = [*messages, _user(text)]
            place = Place("multi_turn", f"{conversation.id}/{number}", run)
            sample = self._asker.ask(place, messages, conversation.max_tokens, greedy=True, checks=turn.checks)
            yield sample
            messages = [*messages, {"role": "assistant", "content": sample.answer}]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _failed(name: str, run: int, why: str) -> Sample:
    return Sample(set=name, prompt=name, run=run, error=why, messages=[])
