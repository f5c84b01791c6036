"""Tries out a model that has just been loaded: whether it answers, and what its runtime can be relied on to do.

It is also the warm-up. Nothing it does may take longer than there is time: an answer is aborted when time is up, and a
prompt that the speed so far has no time for is not read at all, for a prefill cannot be aborted. What comes first is what
slow models need most, that a long prompt can be left; the next load tries what there was no time for.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass, replace

from npu.chat_template import ChatTemplate
from npu.engine import End, Piece, Prompt, Sampling, Stats
from npu.engines.rkllm.generation import RkllmGeneration
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.engines.rkllm.sampling import to_native
from npu.errors import EngineFailed, PromptRefused
from npu.self_test import SelfTest, Verdict

log = logging.getLogger("rockchipllama.rkllm")

SECONDS = 5.0
"""All of it."""
ANSWER_TOKENS = 24
LONGEST_PROMPT = 128
"""Tokens of a question with what its template adds; the slowest chip reads these in 4 s."""
PROBE_TOKENS = 64
SHORT_PROBE = 16
"""As many of them tell as much by a runtime's counts, and are read again where there is no time for all."""
READ_AGAIN = 2
"""Times that a probe is read once more where it was not quicker."""
COMPARED = 6
"""Tokens in which the runtime's greedy choice and that by its logits are compared."""
ABORTED_AFTER = 32
"""Tokens of the answer that is aborted after its first."""
MEASURABLE_MS = 10.0
"""A prefill that is shorter tells nothing by its time."""

GREEDY = Sampling(temperature=0.0)

Right = re.Pattern[str]
_PARIS = re.compile(r"par[ií]s|париж|巴黎|パリ|파리|باريس", re.IGNORECASE)
_QUESTIONS: tuple[tuple[str, Right], ...] = (
    ("What is the capital of France?", _PARIS),
    # By itself, as in "= 4." or "**4**": nonsense has a 4 in it, too, but seldom between blanks.
    ("What is 2 + 2?", re.compile(r"(?:^|[\s=*])(?:4|four)(?:[\s.,!*]|$)", re.IGNORECASE)),
)
_BEGUN = "The capital of France is"
"""What a model without a template can go on with."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a prompt."""

    tokens: list[int]
    text: str
    end: End
    stats: Stats
    counted: bool
    """Whether the runtime told how many tokens it prefilled."""


class SelfTester:
    """One test of one engine, within `seconds`; what an earlier one told is not tried again."""

    def __init__(
        self, loaded: LoadedModel, template: ChatTemplate | None, seconds: float, known: SelfTest | None = None
    ) -> None:
        self._loaded = loaded
        self._template = template
        self._known = known or SelfTest()
        self._can = loaded.family.CAPABILITIES
        self._native = to_native(GREEDY, len(loaded.vocabulary))
        self._until = time.monotonic() + seconds
        self._read_seconds = 0.0
        """A token of a prompt takes, as measured here; what the runtime tells may be simulated."""
        self._say_seconds = 0.0
        self._in_time = True

    def run(self) -> SelfTest:
        """Do all of it. Raises `EngineFailed` when the engine breaks over it."""
        test = self._known
        vocabulary = range(len(self._loaded.vocabulary))
        filler = vocabulary[: min(PROBE_TOKENS, self._loaded.context_length - ABORTED_AFTER)]
        if test.reuse is None:
            test = self._reuse([*filler], test)
        if test.abort_ms is None:
            test = replace(test, abort_ms=self._abort([*filler]))
        answers: list[Answer | None] = []
        if test.text is Verdict.UNKNOWN:
            answers, test = self._text(test)
        if test.logits is Verdict.UNKNOWN:
            # Last, for it takes longest where the runtime cannot tell the size of its cache.
            self._loaded.cache.reuse = test.reuse  # decides how logits are asked for
            logits, logits_ms = self._logits(answers[0] if answers else None, test.text)
            test = replace(test, logits=logits, logits_ms=logits_ms)
        return replace(test, in_time=self._in_time)

    def _text(self, test: SelfTest) -> tuple[list[Answer | None], SelfTest]:
        answers, verdict = self._answers()
        first = next((answer for answer in answers if answer is not None), None)
        if first is None:
            return answers, replace(test, text=verdict)
        said = first.text if verdict is Verdict.SUSPECT else ""
        speed = _rate(first.stats.generated_tokens, first.stats.decode_ms)
        return answers, replace(test, text=verdict, said=said, decode_tps=speed)

    def _answers(self) -> tuple[list[Answer | None], Verdict]:
        """The answers to the questions, as far as there are any, and what they say of the model."""
        answers: list[Answer | None] = []
        for question, expected in _QUESTIONS:
            tokens = self._question(question)
            if tokens is None:
                return [], Verdict.UNKNOWN
            answer = self._ask(tokens, ANSWER_TOKENS)
            answers.append(answer)
            if answer is not None and expected.search(answer.text) is not None:
                return answers, Verdict.SANE
        if any(answer is None or answer.end is End.ABORTED or _thinks(answer.text) for answer in answers):
            return answers, Verdict.UNKNOWN
        return answers, Verdict.SUSPECT

    def _question(self, text: str) -> list[int] | None:
        """Its tokens in the model's template; None when there is no such, or it is too long to be tried."""
        if self._template is None:
            return None
        try:
            prompt = self._template.render([{"role": "user", "content": text}], enable_thinking=False)
            bos = self._template.bos_token
            tokens = self._loaded.tokenizer.encode(prompt, add_special=not (bos and prompt.startswith(bos)))
        except PromptRefused:
            return None  # its users will be told why, each time
        longest = min(LONGEST_PROMPT, self._loaded.context_length - ANSWER_TOKENS)
        return tokens if 0 < len(tokens) <= longest and not prompt.rstrip().endswith("<think>") else None

    def _logits(self, answer: Answer | None, verdict: Verdict) -> tuple[Verdict, float | None]:
        """Whether greedy by the logits is greedy by the runtime, and how long such a token takes."""
        loaded = self._loaded
        if not self._can.logits or not loaded.samples_on_host:
            return Verdict.UNKNOWN, None
        tokens = self._question(_QUESTIONS[0][0]) or loaded.tokenizer.encode(_BEGUN, add_special=True)
        greedy = self._can.per_run_sampling or to_native(loaded.defaults, len(loaded.vocabulary)) == self._native
        if answer is None:
            answer = self._ask(tokens, ANSWER_TOKENS)
        try:
            ours = self._ask(tokens, COMPARED if greedy else ANSWER_TOKENS, by_runtime=False)
            if ours is None or answer is None or not ours.tokens:
                return Verdict.UNKNOWN, None
            steps = len(ours.tokens) - (ours.end is End.LENGTH)
            each = ours.stats.decode_ms / steps if steps else None
            compared = min(len(ours.tokens), len(answer.tokens))
            if greedy and compared and ours.tokens[:compared] == answer.tokens[:compared]:
                return Verdict.SANE, each
            if greedy:
                # Two tokens may be as likely, and then how a prompt was cut into blocks decides. Is it as right?
                ours = self._ask(tokens, ANSWER_TOKENS, by_runtime=False)
        except EngineFailed as error:
            loaded.cache.clear()
            log.warning("the logits of this model cannot be used: %s", error)
            return Verdict.SUSPECT, None
        if ours is not None and _PARIS.search(ours.text):
            return Verdict.SANE, each
        if ours is None or ours.end is End.ABORTED or not (greedy or verdict is Verdict.SANE):
            return Verdict.UNKNOWN, each
        return Verdict.SUSPECT, each

    def _reuse(self, filler: list[int], test: SelfTest) -> SelfTest:
        """Whether a prefix is reused, whether the runtime counts what it reused, and how fast the first prompt was read."""
        first = self._ask(filler, 1)
        if first is not None:
            fresh = first.stats.prompt_tokens - first.stats.cached_tokens
            test = replace(test, prefill_tps=_rate(fresh, first.stats.prefill_ms))
        if not self._can.prefix_reuse:
            return replace(test, reuse=False)
        again = self._ask(self._fitting(filler, 1), 1)
        if first is None or again is None or not first.tokens or not again.tokens:
            return test
        if again.counted and again.stats.cached_tokens > 0:
            return replace(test, reuse=True)
        # By time, then: twice, lest something else on this machine made the first one slow.
        quicker = self._is_quicker(first, again, filler)
        if quicker:
            backwards = self._fitting(filler[::-1], 2)
            other, other_again = self._ask(backwards, 1), self._ask(backwards, 1)
            if other is None or other_again is None or not other.tokens or not other_again.tokens:
                return test
            quicker = self._is_quicker(other, other_again, backwards)
        if first.counted and again.counted:
            return replace(test, reuse=bool(quicker), counts_cached=bool(quicker))
        return replace(test, reuse=quicker)

    def _is_quicker(self, first: Answer, again: Answer, tokens: list[int]) -> bool | None:
        """Whether they are read in much less time once they were read; as often as it takes to see, lest something else on this
        machine made it slow."""
        quicker = _is_quicker(first, again)
        for _ in range(READ_AGAIN):
            fitting = self._fitting(tokens, 1)
            if quicker is not False or not self._would_fit(len(fitting), 1):
                break
            once_more = self._ask(fitting, 1)
            quicker = once_more is not None and _is_quicker(first, once_more)
        return quicker

    def _fitting(self, filler: list[int], times: int) -> list[int]:
        return filler if self._would_fit(len(filler) * times, times) else filler[:SHORT_PROBE]

    def _abort(self, filler: list[int]) -> float | None:
        """Milliseconds from an abort between two tokens to the end of its run."""
        if not self._has_time_for(len(filler), 2):
            return None
        generation = self._generation(filler, ABORTED_AFTER, by_runtime=True)
        pieces = iter(generation)
        if next(pieces, None) is None:
            return None
        begun = time.monotonic()
        generation.abort()
        for _ in pieces:
            pass
        return (time.monotonic() - begun) * 1000 if generation.end is End.ABORTED else None

    def _ask(self, tokens: list[int], count: int, *, by_runtime: bool = True) -> Answer | None:
        """The answer, cut short when time is up; None when there is no time for it."""
        if not self._has_time_for(len(tokens), 1):
            return None
        generation = self._generation(tokens, count, by_runtime)
        begun = first = time.monotonic()
        over = threading.Timer(max(0.0, self._until - begun), generation.abort)
        over.daemon = True
        over.start()
        said: list[Piece] = []
        try:
            for piece in generation:
                if not said:
                    first = time.monotonic()
                said.append(piece)
        finally:
            over.cancel()
        if generation.end is End.ABORTED:
            self._in_time = False
        if said and by_runtime and not self._read_seconds:
            self._read_seconds = (first - begun) / len(tokens)
            self._say_seconds = (time.monotonic() - first) / len(said)
        text = b"".join(piece.data for piece in said).decode(errors="replace")
        return Answer([piece.token for piece in said], text, generation.end, generation.stats, generation.counted)

    def _generation(self, tokens: list[int], count: int, by_runtime: bool) -> RkllmGeneration:
        native = self._native if by_runtime else None
        return RkllmGeneration(self._loaded, Prompt(tokens, count), GREEDY, native, None)

    def _has_time_for(self, tokens: int, said: int) -> bool:
        fits = self._would_fit(tokens, said)
        self._in_time = self._in_time and fits
        return fits

    def _would_fit(self, tokens: int, said: int) -> bool:
        return time.monotonic() + tokens * self._read_seconds + said * self._say_seconds < self._until


def _thinks(text: str) -> bool:
    return "<think>" in text and "</think>" not in text


def _rate(tokens: int, milliseconds: float) -> float | None:
    return tokens / milliseconds * 1000 if tokens > 0 and milliseconds > 0 else None


def _is_quicker(first: Answer, again: Answer) -> bool | None:
    """Whether the second prefill took less than half the first's time for a token; None when that cannot be measured."""
    if first.stats.prefill_ms < MEASURABLE_MS:
        return None
    return again.stats.prefill_ms / again.stats.prompt_tokens < first.stats.prefill_ms / first.stats.prompt_tokens / 2
