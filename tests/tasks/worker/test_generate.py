"""A run: a prepared request and an engine in, events out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from npu.engine import End, Prompt, Sampling, TextEngine
from npu.engines.echo import EchoTokenizer
from npu.errors import EngineFailed, PromptRefused
from tasks.events import ChoiceEnded, FinishReason, TextDelta, Usage
from tasks.prompting.prepare import Prepared
from tasks.worker.generate import Totals, run
from tests.fakes import engines
from tests.fakes.engines import TEXT, ScriptedEngine, ScriptedGeneration
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
