"""A run: a prepared request and an engine in, events out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from npu.answer_format import ThinkingFormat, ToolFormat
from npu.constraint import Call, Calls, Constraint, JsonObject
from npu.engine import End, Piece, Prompt, Sampling, TextEngine
from npu.engines.echo import EchoTokenizer
from npu.errors import EngineFailed, FieldRefused, PromptRefused, SamplingRefused
from tasks.events import ChoiceEnded, FinishReason, TextDelta, Usage
from tasks.prompting.prepare import Prepared
from tasks.prompting.reading import Reading
from tasks.requests import Tool
from tasks.worker.generate import Totals, run
from tests.fakes import engines
from tests.fakes.engines import TEXT, Script, ScriptedEngine, ScriptedGeneration
from tests.fakes.transcript import Transcript


def prepared(
    *prompts: str,
    n: int = 1,
    stop: tuple[str, ...] = (),
    max_tokens: int = 1000,
    echo: bool = False,
    sampling: Sampling | None = None,
) -> Prepared:
    texts = prompts or ("hello",)
    encode = EchoTokenizer().encode
    return Prepared(
        prompts=tuple(Prompt(encode(text), max_tokens) for text in texts),
        sampling=sampling or Sampling(),
        stop=stop,
        n=n,
        echoes=tuple(text.encode() for text in texts) if echo else None,
    )


def go(engine: TextEngine, request: Prepared, transcript: Transcript | None = None) -> tuple[Transcript, Totals]:
    transcript = transcript if transcript is not None else Transcript()
    totals = Totals()
    reason = run(request, engine, transcript, totals)
    assert (reason is FinishReason.CANCELLED) == transcript.cancelled
    return transcript, totals


class RecordingEngine(ScriptedEngine):
    """Says each prompt back, and remembers the sampling of each run."""

    def __init__(self) -> None:
        super().__init__(lambda _: iter(()))
        self.samplings: list[Sampling] = []

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> ScriptedGeneration:
        self.samplings.append(sampling)
        if on_prefill is not None:
            on_prefill(len(prompt.tokens))
        self.prompts.append(prompt)
        return ScriptedGeneration(prompt, lambda _: engines.pieces_of(bytes(prompt.tokens).decode(), size=1))


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_an_answer_is_what_the_engine_said(size: int) -> None:
    """Whole characters only, nothing lost, and every piece in the record as it came."""
    transcript, totals = go(engines.says(TEXT, size=size), prepared("hello"))
    assert transcript.texts == [TEXT]
    assert transcript[-1] == ChoiceEnded(0, FinishReason.STOP)
    assert transcript.piece_text(0) == TEXT.encode()
    assert not any("\ufffd" in event.text for event in transcript if isinstance(event, TextDelta))
    assert totals.usage() == Usage(5, len(transcript.pieces), 0)


def test_a_piece_that_shows_nothing_is_recorded_all_the_same() -> None:
    """Another claim must be able to go on from every token, so also from those without text."""
    transcript, totals = go(engines.says_empty_pieces(), prepared())
    assert transcript.texts == ["ab"]
    assert [piece.data for piece in transcript.pieces] == [b"", b"a", b"", b"", b"b", b""]
    assert totals.completion_tokens == 6


def test_bytes_that_are_no_utf8_do_not_end_the_answer() -> None:
    """They become U+FFFD; what is cut off at the very end is told with the end."""
    transcript, _ = go(engines.says_broken_utf8(), prepared())
    assert transcript.texts == ["a\ufffdb\ufffd"]
    assert isinstance(transcript[-1], ChoiceEnded)


def test_an_engine_that_says_nothing() -> None:
    """An empty answer is an answer: it ends with `stop`, without a delta."""
    transcript, totals = go(engines.says_nothing(), prepared())
    assert list(transcript) == [ChoiceEnded(0, FinishReason.STOP)]
    assert totals.usage() == Usage(5, 0)


def test_max_tokens_ends_with_length() -> None:
    """Exactly as many tokens as asked for, with what was held back of a stop sequence that never came."""
    transcript, totals = go(engines.never_ends(), prepared(max_tokens=3, stop=("more more more more",)))
    assert transcript[-1] == ChoiceEnded(0, FinishReason.LENGTH)
    assert transcript.texts == ["more more more "]
    assert totals.completion_tokens == 3


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_stop_sequence_ends_the_answer_and_the_engine(size: int) -> None:
    """The text ends just before it, the event names it, the engine is aborted, and later pieces are nobody's."""
    engine = engines.says("One two three, STOP four five six seven eight", size=size)
    transcript, totals = go(engine, prepared(stop=("never", "STOP")))
    assert transcript.texts == ["One two three, "]
    assert transcript[-1] == ChoiceEnded(0, FinishReason.STOP, "STOP")
    assert totals.completion_tokens == len(transcript.pieces) == -(-len("One two three, STOP") // size)
    [generation] = transcript.begun
    # In one piece there is nothing left to abort; the engine had ended by itself.
    assert generation.end is (End.ABORTED if size < 50 else End.EOS)


def test_a_stop_sequence_ends_an_engine_that_would_never_end() -> None:
    """It is aborted at once, not at its limit."""
    transcript, totals = go(engines.never_ends(), prepared(stop=("e m",), max_tokens=10**9))
    assert transcript.texts == ["mor"]
    assert totals.completion_tokens == 2


def test_a_stop_sequence_on_the_last_token_is_stop_not_length() -> None:
    """The answer ended where it was told to."""
    transcript, _ = go(engines.says("abSTOP", size=1), prepared(stop=("STOP",), max_tokens=6))
    assert transcript[-1] == ChoiceEnded(0, FinishReason.STOP, "STOP")


def test_what_an_engine_says_after_a_stop_sequence_is_nobodys() -> None:
    """An abort takes a while: what comes meanwhile is neither recorded nor counted, and spoils no later answer."""
    transcript, totals = go(engines.hears_late("abSTOPcdSTOPef"), prepared(n=2, stop=("STOP",)))
    assert transcript.texts == ["ab", "ab"]
    assert [transcript.piece_text(choice) for choice in (0, 1)] == [b"abSTOP"] * 2
    assert totals.completion_tokens == 12


def test_what_an_engine_says_after_a_cancellation_is_nobodys() -> None:
    """Nor does a stop sequence in it make a whole answer of it."""
    transcript, totals = go(engines.hears_late("abcSTOPd"), prepared(stop=("STOP",)), Transcript(cancel_at=2))
    assert transcript.texts == ["ab"]
    assert transcript.piece_text(0) == b"ab"
    assert totals.completion_tokens == 2


def test_n_answers_to_one_prompt() -> None:
    """Each whole and in turn under its own number; the prompt counts once, the answers all."""
    transcript, totals = go(RecordingEngine(), prepared("abc", n=3))
    assert transcript.texts == ["abc"] * 3
    assert [event.choice for event in transcript if isinstance(event, ChoiceEnded)] == [0, 1, 2]
    assert [piece.choice for piece in transcript.pieces] == [0] * 3 + [1] * 3 + [2] * 3
    assert totals.usage() == Usage(3, 9)


def test_n_answers_to_several_prompts() -> None:
    """Choice i*n+k is the k-th answer to prompt i; each prompt counts once; times add up."""
    transcript, totals = go(RecordingEngine(), prepared("a", "bc", n=2))
    assert transcript.texts == ["a", "a", "bc", "bc"]
    assert totals.usage() == Usage(3, 6)
    assert (totals.prefill_ms, totals.decode_ms) == (4.0, 8.0)


def test_echo_puts_each_prompt_before_its_answers() -> None:
    """Also characters outside ASCII; the echoed text costs no tokens and is no stop sequence."""
    transcript, totals = go(RecordingEngine(), prepared("ä.", "b", n=2, echo=True, stop=(".",)))
    assert transcript.texts == ["ä.ä", "ä.ä", "bb", "bb"]
    assert totals.completion_tokens == len(transcript.pieces) == 8


def test_every_answer_gets_its_own_seed() -> None:
    """Else n answers would be one answer n times; without a seed the engine chooses, n times."""
    engine = RecordingEngine()
    go(engine, prepared("a", "b", n=3, sampling=Sampling(seed=2**32 - 2)))
    assert [sampling.seed for sampling in engine.samplings] == [2**32 - 2, 2**32 - 1, 0] * 2
    engine = RecordingEngine()
    go(engine, prepared(n=2))
    assert [sampling.seed for sampling in engine.samplings] == [None, None]
    engine = RecordingEngine()
    go(engine, prepared("a", "b", sampling=Sampling(seed=7)))
    assert [sampling.seed for sampling in engine.samplings] == [7, 7]


def test_prefill_progress_reaches_the_sink() -> None:
    """As the engine tells it."""
    transcript, _ = go(RecordingEngine(), prepared("abcd"))
    assert transcript.progress == [4]


def test_cancelled_before_it_begins() -> None:
    """The engine is never iterated, and nothing is written."""
    ran = threading.Event()

    def script(_: threading.Event) -> Iterator[bytes]:
        ran.set()
        yield b"no"

    transcript, totals = go(ScriptedEngine(script), prepared(), Transcript(cancel_at=0))
    assert transcript.cancelled
    assert list(transcript) == [] and transcript.pieces == [] and not ran.is_set()
    assert totals.usage() == Usage(0, 0)


def test_cancelled_in_mid_answer() -> None:
    """The engine stops, nothing more is written, what it cost is counted, and no choice pretends to have ended."""
    transcript, totals = go(engines.never_ends(), prepared(n=3, stop=("more more X",)), Transcript(cancel_at=5))
    assert transcript.cancelled
    assert not any(isinstance(event, ChoiceEnded) for event in transcript)
    assert len(transcript.begun) == 1
    assert transcript.begun[0].end is End.ABORTED
    assert totals.usage() == Usage(5, 5)


def test_cancelled_in_a_later_answer() -> None:
    """What ended before stays ended, and its cost is counted."""
    transcript, totals = go(engines.says("abcd", size=1), prepared(n=3), Transcript(cancel_at=6))
    assert transcript.texts == ["abcd", "ab"]
    assert [event.choice for event in transcript if isinstance(event, ChoiceEnded)] == [0]
    assert totals.usage() == Usage(5, 6)


def test_cancelled_by_another_thread_while_the_engine_is_silent() -> None:
    """An abort from outside ends a run that waits for its next token."""
    transcript = Transcript()
    first = threading.Event()
    transcript.on_piece = first.set

    def cancel() -> None:
        first.wait(60)
        transcript._cancel_at = 1
        transcript.begun[0].abort()

    thread = threading.Thread(target=cancel)
    thread.start()
    go(engines.hangs_until_aborted(), prepared(), transcript)
    thread.join(60)
    assert transcript.cancelled
    assert transcript.texts == ["On"]


def test_an_engine_that_breaks_midway() -> None:
    """What it said until then was written, the error is the caller's, and earlier answers stay counted."""
    transcript, totals = Transcript(), Totals()
    with pytest.raises(EngineFailed, match="on purpose"):
        run(prepared(), engines.raises_midway(), transcript, totals)
    assert transcript.texts == ["One "]
    assert not any(isinstance(event, ChoiceEnded) for event in transcript)
    assert totals.usage() == Usage(5, 2)


def test_an_engine_that_breaks_in_a_later_answer() -> None:
    """What it cost adds up to the answers before, and the prompt counts once."""
    said = iter((engines.pieces_of("abcd", size=1), engines.raises_midway()._script(threading.Event())))
    totals = Totals()
    with pytest.raises(EngineFailed, match="on purpose"):
        run(prepared(n=2), ScriptedEngine(lambda _: next(said)), Transcript(), totals)
    assert totals.usage() == Usage(5, 6)


def test_an_engine_that_refuses_the_prompt() -> None:
    """Nothing was written, so the job can fail with a status."""
    transcript, totals = Transcript(), Totals()
    with pytest.raises(PromptRefused):
        run(prepared(), engines.refuses_the_prompt(), transcript, totals)
    assert list(transcript) == []
    assert totals.usage() == Usage(0, 0)


def test_a_sink_that_raises_ends_the_run() -> None:
    """A worker that lost its claim does not go on generating for nobody."""

    class LostClaim(Exception):
        pass

    transcript = Transcript()

    def lose() -> None:
        raise LostClaim

    transcript.on_piece = lose
    totals = Totals()
    with pytest.raises(LostClaim):
        run(prepared(), engines.never_ends(), transcript, totals)
    assert len(transcript.pieces) == 1
    assert totals.usage() == Usage(5, 1)


def thinking(budget: int | None, *, begun: bool = False, max_tokens: int = 1000, n: int = 1) -> Prepared:
    closing = tuple((byte, bytes((byte,))) for byte in b"</think>")
    reading = Reading(ThinkingFormat.THINK, thought_begun=begun, budget=budget, closing=closing)
    return replace(prepared("hello", max_tokens=max_tokens, n=n), reading=reading)


class Rethinking(ScriptedEngine):
    """Thinks on and on, and answers once its thought was ended for it."""

    def __init__(self) -> None:
        super().__init__(lambda _: iter(()))

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> ScriptedGeneration:
        self.prompts.append(prompt)
        text = "So." if bytes(prompt.tokens).endswith(b"</think>") else "<think>" + "hm " * 100
        return HearsLate(prompt, lambda _: engines.pieces_of(text, size=1))


class HearsLate(ScriptedGeneration):
    """Says three more pieces after an abort."""

    def __init__(self, prompt: Prompt, script: Script) -> None:
        super().__init__(prompt, script)
        self._late = 3

    def __iter__(self) -> Iterator[Piece]:
        aborted, self._aborted = self._aborted, threading.Event()
        for piece in super().__iter__():
            yield piece
            if aborted.is_set():
                self._late -= 1
                if not self._late:
                    self._aborted.set()

    def abort(self) -> None:
        """Remembered."""
        self._aborted.set()


@pytest.mark.parametrize("budget", [7, 8, 20])
def test_a_thought_that_has_had_its_tokens_is_ended(budget: int) -> None:
    """At exactly that token; the model goes on behind the mark that ends it, and all of it is one answer."""
    engine = Rethinking()
    transcript, totals = go(engine, thinking(budget))
    choice = transcript.reply.choice(0)
    assert choice.reasoning == ("hm " * 100)[: budget - len("<think>")].rstrip()
    assert choice.text == "So."
    assert transcript[-1] == ChoiceEnded(0, FinishReason.STOP)
    assert totals.usage() == Usage(5, budget + len("</think>") + 3, 0, budget + len("</think>"))
    assert (totals.prefill_ms, totals.decode_ms) == (2.0, 4.0)
    first, second = engine.prompts
    assert bytes(second.tokens) == bytes(first.tokens) + transcript.piece_text(0).removesuffix(b"So.")
    assert second.max_tokens == 1000 - budget - len("</think>")


def test_a_thought_that_may_have_no_token_is_ended_before_it_begins() -> None:
    """Where the prompt began it; the engine runs once."""
    engine, transcript = Rethinking(), Transcript()
    transcript.forced = True
    transcript, totals = go(engine, thinking(0, begun=True), transcript)
    assert (transcript.reply.choice(0).reasoning, transcript.texts) == ("", ["So."])
    assert totals.usage() == Usage(5, 11, 0, 8)
    assert len(engine.prompts) == 1


def test_an_answer_that_ends_while_its_thought_is_ended() -> None:
    """Its limit of tokens holds for these, too."""
    transcript, totals = go(Rethinking(), thinking(10, max_tokens=14))
    assert transcript[-1] == ChoiceEnded(0, FinishReason.LENGTH)
    assert totals.completion_tokens == len(transcript.pieces) == 14
    assert transcript.reply.choice(0).text == ""


def test_a_thought_within_its_budget_is_left_alone() -> None:
    """And so is an answer without any."""
    for text, thought in (("<think>ab</think>yes", "ab"), ("yes", "")):
        engine = engines.says(text, size=1)
        transcript, totals = go(engine, thinking(20))
        choice = transcript.reply.choice(0)
        assert (choice.reasoning, choice.text) == (thought, "yes")
        assert totals.completion_tokens == len(text)
        assert len(engine.prompts) == 1


def test_a_cancellation_between_thought_and_answer() -> None:
    """Ends the job; what was said counts."""
    _, totals = go(Rethinking(), thinking(10), Transcript(cancel_at=12))
    assert totals.completion_tokens == 12


def calling(text: str, **rest: Any) -> tuple[ScriptedEngine, Prepared]:
    reading = Reading(calls=ToolFormat.HERMES, tools=(Tool("time"),), **rest)
    return engines.says(text, size=3), replace(prepared("hello", n=2), reading=reading)


CALL = '<tool_call>{"name": "time", "arguments": {"a": 1}}</tool_call>'


def test_an_answer_with_calls_ends_with_tool_calls() -> None:
    """Each choice has ids of its own, and what is said around them."""
    transcript, _ = go(*calling(f"Well. {CALL}"))
    choices = [transcript.reply.choice(choice) for choice in (0, 1)]
    assert [choice.text for choice in choices] == ["Well."] * 2
    assert [(call.name, call.arguments) for choice in choices for call in choice.tool_calls] == [
        ("time", '{"a": 1}')
    ] * 2
    assert len({call.id for choice in choices for call in choice.tool_calls}) == 2
    assert transcript[-1] == ChoiceEnded(1, FinishReason.TOOL_CALLS)


def test_the_engine_is_stopped_behind_the_only_call() -> None:
    """What it would say further is nobody's."""
    transcript, _ = go(*calling(f"{CALL}{CALL} and more", most_calls=1))
    assert [len(transcript.reply.choice(choice).tool_calls) for choice in (0, 1)] == [1, 1]
    assert [generation.end for generation in transcript.begun] == [End.ABORTED] * 2  # type: ignore[attr-defined]
    assert transcript[-1] == ChoiceEnded(1, FinishReason.TOOL_CALLS)


def test_a_call_cut_short_ends_with_length() -> None:
    """Its arguments are not whole, so it is not to be called."""
    engine, request = calling(CALL)
    request = replace(request, prompts=(replace(request.prompts[0], max_tokens=14),), n=1)
    transcript, _ = go(engine, request)
    assert transcript[-1] == ChoiceEnded(0, FinishReason.LENGTH)
    assert transcript.reply.choice(0).tool_calls[0].arguments == "{"


@pytest.mark.parametrize(("required", "field"), [(True, "tool_choice"), (False, "strict")])
def test_calls_that_an_engine_cannot_be_held_to(required: bool, field: str) -> None:
    """Are refused in the words of who asked for them."""

    class Free(ScriptedEngine):
        def generate(
            self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
        ) -> ScriptedGeneration:
            raise SamplingRefused("constraint", "it has no logits.")

    form = Calls((Call("{", "{", JsonObject()),), required)
    with pytest.raises(FieldRefused, match="it has no logits") as refused:
        go(Free(lambda _: iter(())), prepared(sampling=Sampling(constraint=Constraint(form))))
    assert refused.value.field == field
