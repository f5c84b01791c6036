"""The engine for the NPU, on every family of the runtime, against a simulator that knows what the answer should be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from npu.engine import End, Piece, Prompt, Sampling, Stats
from npu.engines import Setup
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.loaded_model import slice_seconds
from npu.errors import EngineFailed, ModelRefused, SamplingRefused
from npu.manifest import read_manifest
from npu.rkllm import handle
from npu.rkllm.abi import FAMILIES
from npu.simulator import SWITCHES, Language, Profile, SimulatedModel, write_model

VERSIONS = tuple(abi.RUNTIMES[-1] for abi in FAMILIES)
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repeat_penalty": 1.0}
"""As the model's defaults, so that every family samples like this by itself."""
LANGUAGE = Language(answers=SimulatedModel().answers)
LONG = {**SimulatedModel().answers, "sea": "The sea is deep and blue and wide, " * 60}
"""Answers of which one is not at its end before anything else was done, however slow the machine."""
WAIT = 60.0

Open = Callable[..., RkllmEngine]


@pytest.fixture
def opens(tmp_path: Path, runtime_dir: Path) -> Iterator[Open]:
    """Opens engines on simulated models, and closes them."""
    opened: list[RkllmEngine] = []

    def opening(version: str = "1.3.0", simulated: SimulatedModel | None = None, **changes: object) -> RkllmEngine:
        folder = tmp_path / f"model{len(opened)}"
        write_model(folder, simulated or SimulatedModel())
        settings = {"sampling_defaults": GREEDY, **changes}
        model = replace(read_manifest(folder / "manifest.toml"), **settings)  # type: ignore[arg-type]
        engine = RkllmEngine(model, Setup(runtime_dir, rkllm_library=f"simulator-{version}"))
        opened.append(engine)
        return engine

    yield opening
    for engine in opened:
        engine.close()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """The newest runtime of each family."""
    name: str = request.param
    return name


def ask(engine: RkllmEngine, text: str) -> list[int]:
    """The tokens of a question."""
    return engine.tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def run(
    engine: RkllmEngine, tokens: list[int], count: int = 40, sampling: Sampling | None = None
) -> tuple[list[int], End, Stats]:
    """The ids of an answer, and how it ended."""
    generation = engine.generate(Prompt(tokens, count), sampling or Sampling(**GREEDY))  # type: ignore[arg-type]
    pieces = list(generation)
    assert b"".join(piece.data for piece in pieces) == engine.tokenizer.decode([piece.token for piece in pieces])
    return [piece.token for piece in pieces], generation.end, generation.stats


def expected(tokens: list[int], count: int = 40) -> list[int]:
    """What the simulated model says to that."""
    return LANGUAGE.expected_answer(tokens, count)


QUESTIONS = ("Hello", "Tell me of the sea", "What is the capital of France?", "And 2 + 2?", "Grüße 😀")


def test_answers_are_the_models_own(opens: Open, version: str) -> None:
    """One after another on one handle: nothing of one shows in the next."""
    engine = opens(version)
    assert version in engine.version
    for question in QUESTIONS:
        tokens = ask(engine, question)
        assert run(engine, tokens)[:2] == (expected(tokens), End.EOS), question
        assert run(engine, tokens, 3)[:2] == (expected(tokens, 3), End.LENGTH)


@pytest.mark.parametrize(
    "switch", [f"{name}={value}" for name, values in SWITCHES.items() for value in values[1:]], ids=str
)
def test_no_open_question_changes_an_answer(opens: Open, version: str, switch: str) -> None:
    """However the vendor's library does what nobody has documented: native, from logits, cut short, aborted, in turns."""
    name, value = switch.split("=")
    engine = opens(version, SimulatedModel(switches={name: value}))
    conversation: list[int] = []
    for question in QUESTIONS[:3]:
        conversation += ask(engine, question)
        answer = expected(conversation)
        assert run(engine, conversation, 3)[0] == answer[:3]
        assert run(engine, conversation)[:2] == (answer, End.EOS)
        aborted = iter(generation := engine.generate(Prompt(conversation, 40), Sampling(**GREEDY)))  # type: ignore[arg-type]
        assert next(aborted).token == answer[0]
        generation.abort()
        list(aborted)
        if engine.loaded.family.CAPABILITIES.logits:
            assert run(engine, conversation, sampling=Sampling(temperature=0.0, seed=1))[0] == answer
        conversation += answer


def test_a_conversation_is_prefilled_once(opens: Open) -> None:
    """Each turn reads what is new, by the runtime's own count."""
    for version in ("1.2.3", "1.3.0"):
        engine = opens(version)
        conversation = ask(engine, "Hello")
        for question in QUESTIONS[1:]:
            answer, _, stats = run(engine, conversation)
            new = ask(engine, question)
            conversation += answer + new
            answer, _, stats = run(engine, conversation, 2)
            assert stats.prompt_tokens - stats.cached_tokens <= len(new) + 2


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_a_model_without_reuse_keeps_its_conversation(opens: Open, version: str) -> None:
    """Only what is new is sent, as long as everything before agrees token by token."""
    engine = opens(version, SimulatedModel(full_attention=False))
    assert engine.loaded.cache.reuse is False
    conversation = ask(engine, "Hello")
    for question in QUESTIONS[1:]:
        answer = run(engine, conversation)[0]
        assert answer == expected(conversation)
        new = ask(engine, question)
        conversation += answer + new
        answer, _, stats = run(engine, conversation, 5)
        assert answer == expected(conversation, 5)
        assert stats.cached_tokens >= len(conversation) - len(new) - 2
    other = ask(engine, "Something else")
    answer, _, stats = run(engine, other)
    assert (answer, stats.cached_tokens) == (expected(other), 0)


def test_times_and_counts_are_the_runtimes(opens: Open) -> None:
    """A known conversation comes out exactly; a rate over the whole time would not."""
    engine = opens("1.3.0", SimulatedModel(profile=Profile(prefill_tps=1000, decode_tps=100), time_scale=0.01))
    tokens = ask(engine, "How long does this take?")
    answer, _, stats = run(engine, tokens, 12)
    assert len(answer) == stats.generated_tokens == 12
    assert stats.prefill_ms == pytest.approx(len(tokens), abs=0.01)
    assert stats.decode_ms == pytest.approx(12 * 10, abs=0.01)
    assert stats.memory_mb == Profile().memory_mb


@pytest.mark.parametrize("miscount", [0, -1, 1])
def test_a_count_of_the_runtimes_that_is_not_ours_is_told(
    opens: Open, caplog: pytest.LogCaptureFixture, miscount: int
) -> None:
    """Once, whether the answer ended by itself or at its limit; an answer that was aborted proves nothing."""
    engine = opens("1.3.0", SimulatedModel(miscount=miscount), engine_options={"self_test": 0})
    tokens = ask(engine, "Tell me of the sea")
    generation = engine.generate(Prompt(tokens, 40), Sampling(**GREEDY))  # type: ignore[arg-type]
    next(pieces := iter(generation))
    generation.abort()
    assert list(pieces) == [] and "were heard" not in caplog.text
    heard = [len(run(engine, tokens, count)[0]) for count in (3, 40, 40)]
    said = f"{heard[0]} tokens were heard of an answer of which the runtime counted {heard[0] + miscount}"
    assert caplog.text.count("were heard") == caplog.text.count(said) == (miscount != 0)


def test_sampling_is_chosen_per_request(opens: Open, version: str) -> None:
    """By the runtime where it can, else from logits; where there are none it is refused by name."""
    engine = opens(version)
    tokens, hot = ask(engine, "Tell me a story"), Sampling(temperature=1.5, seed=11)
    window = Sampling(**GREEDY, repeat_last_n=7)  # type: ignore[arg-type]
    if not engine.loaded.family.CAPABILITIES.logits:
        for sampling, field in ((hot, "seed"), (Sampling(temperature=0.7), "temperature"), (window, "repeat_last_n")):
            with pytest.raises(SamplingRefused) as refused:
                engine.generate(Prompt(tokens, 5), sampling)
            assert refused.value.field == field
        return
    first = run(engine, tokens, 20, hot)[0]
    assert run(engine, tokens, 20, hot)[0] == first
    assert run(engine, tokens, 20, replace(hot, seed=12))[0] != first
    assert run(engine, tokens, 20)[0] == expected(tokens, 20)
    forced = run(engine, tokens, 5, Sampling(temperature=0.0, logit_bias={70: 1000.0}))[0]
    assert forced == [70] * 5


@pytest.mark.parametrize("version", ["1.1.4", "1.2.3"])
@pytest.mark.parametrize(("defaults", "asked"), [(1.0, 0.0), (0.0, 1.0)], ids=["greedy", "unlimited"])
def test_no_limit_is_not_greedy(opens: Open, version: str, defaults: float, asked: float) -> None:
    """Whoever asks for either is not answered as by the other, which such a model may be set up with for good."""
    engine = opens(version, sampling_defaults={**GREEDY, "temperature": defaults})
    tokens, sampling = ask(engine, "Tell me of the sea"), Sampling(**{**GREEDY, "temperature": asked})  # type: ignore[arg-type]
    if engine.loaded.family.CAPABILITIES.logits:
        answers = {tuple(run(engine, tokens, 10, sampling)[0]) for _ in range(4)}
        assert (answers == {tuple(expected(tokens, 10))}) is (asked == 0.0)
        return
    with pytest.raises(SamplingRefused) as refused:
        engine.generate(Prompt(tokens, 10), sampling)
    assert refused.value.field == "temperature"


def test_a_seeded_answer_goes_on_as_if_never_cut(opens: Open) -> None:
    """What a paused job relies on."""
    engine = opens("1.2.3")
    tokens, sampling = ask(engine, "Tell me a story"), Sampling(temperature=1.2, seed=3, ignore_eos=True)
    whole = run(engine, tokens, 12, sampling)[0]
    assert run(engine, [*tokens, *whole[:5]], 7, sampling)[0] == whole[5:]


def test_host_sampling_can_be_switched_off(opens: Open) -> None:
    """It is not yet confirmed on hardware."""
    engine = opens("1.2.3", engine_options={"host_sampling": 0})
    with pytest.raises(SamplingRefused, match="host_sampling"):
        engine.generate(Prompt([70], 5), Sampling(temperature=0.5))


def test_logits_of_a_large_vocabulary_come_one_token_at_a_time(opens: Open) -> None:
    """The simulator dies of more than 8 MB in one callback; what the tokenizer does not know is never drawn."""
    engine = opens("1.2.3", SimulatedModel(vocab_size=151_936))
    tokens = ask(engine, "word " * 60)
    answer, _, _ = run(engine, tokens, 6, Sampling(temperature=2.0, seed=5))
    assert len(answer) == 6
    assert max(answer) < len(engine.vocabulary)


def test_a_long_prompt_is_prefilled_in_slices(opens: Open) -> None:
    """An abort inside is heard at the end of a slice, and progress is told exactly."""
    engine = opens("1.3.0", SimulatedModel(max_context_limit=16384), engine_options={"prefill_slice": 256})
    tokens = engine.tokenizer.encode("word " * 2000)[:2000]
    seen: list[int] = []
    generation = engine.generate(Prompt(tokens, 4), Sampling(**GREEDY), seen.append)  # type: ignore[arg-type]
    assert [piece.token for piece in generation] == expected(tokens, 4)
    assert seen == [256, 512, 768, 1024, 1280, 1536, 1792, 2000]
    assert generation.stats.cached_tokens <= 8  # tokens read again where two slices meet count once
    other = tokens[:0:-1]  # of which nothing is cached
    seen.clear()
    generation = engine.generate(Prompt(other, 4), Sampling(**GREEDY), seen.append)  # type: ignore[arg-type]
    pieces = iter(generation)

    def aborting(done: int) -> None:
        seen.append(done)
        if done == 512:
            generation.abort()

    generation._on_prefill = aborting
    assert list(pieces) == []
    assert (seen[-1], generation.end) == (512, End.ABORTED)
    assert run(engine, other, 4)[0] == expected(other, 4)


@pytest.mark.parametrize("counts", ["no", "yes"], ids=["counts what is new", "counts cached tokens, too"])
@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_a_conversation_longer_than_a_slice_is_prefilled_once(opens: Open, version: str, counts: str) -> None:
    """No slice ends inside of what is cached: that would cut off the rest of it, turn after turn."""
    simulated = SimulatedModel(
        switches={"prefill_counts_cached": counts}, profile=Profile(prefill_tps=5000, decode_tps=2000)
    )
    engine = opens(version, simulated, engine_options={"prefill_slice": 128})
    assert engine.loaded.counts_cached is (counts == "yes")
    conversation, known = ask(engine, "Tell me of " + "the sea and the sky " * 50), 0
    for question in QUESTIONS[:3]:
        seen = list[int]()
        generation = engine.generate(Prompt(conversation, 8), Sampling(**GREEDY), seen.append)  # type: ignore[arg-type]
        answer = [piece.token for piece in generation]
        assert answer == expected(conversation, 8)
        assert seen[0] > known  # or what is cached was cut off
        assert generation.stats.cached_tokens >= known - 1
        known = len(conversation) + len(answer) - 1
        conversation = conversation + answer + ask(engine, question)


def test_a_slice_that_was_left_is_not_taken_for_cached(opens: Open) -> None:
    """What it drove out of the cache is read in slices once more: one run over all of it could not be left."""
    simulated = SimulatedModel(profile=Profile(prefill_tps=2000))
    engine = opens("1.2.0", simulated, engine_options={"prefill_slice": 128})
    assert engine.loaded.cache.reuse
    mine = engine.tokenizer.encode("word " * 600)[:600]
    run(engine, mine, 2)
    left = engine.generate(Prompt(mine[:0:-1], 2), Sampling(**GREEDY))  # type: ignore[arg-type]
    reader = threading.Thread(target=lambda: list(left))
    reader.start()
    while engine.loaded.handle._call is None:
        assert reader.is_alive()
    left.abort()
    reader.join(WAIT)
    seen = list[int]()
    again = engine.generate(Prompt(mine, 2), Sampling(**GREEDY), seen.append)  # type: ignore[arg-type]
    assert [piece.token for piece in again] == expected(mine, 2)
    assert seen == [128, 256, 384, 512, 600]


def test_a_slice_is_as_long_as_the_speed_allows(opens: Open) -> None:
    """One and a half seconds at the speed last measured, in whole blocks."""
    engine = opens("1.3.0", SimulatedModel(max_context_limit=16384))
    assert list(engine.loaded.slices(1000, 0)) == [256, 512, 768]
    engine.loaded.prefilled(1000, 2000.0)
    assert list(engine.loaded.slices(2000, 100)) == [740, 1380]
    engine.loaded.prefilled(3, 0.1)
    assert next(engine.loaded.slices(2000, 0)) == 640


def test_a_slice_costs_a_tenth_at_most_where_six_seconds_allow_it() -> None:
    """Whoever waits comes first until then, and again past it."""
    assert [slice_seconds(end) for end in (0.0, 0.045, 0.15)] == [1.5, 1.5, 1.5]
    assert slice_seconds(0.3) == pytest.approx(3.0)
    assert slice_seconds(2.0) == 6.0


@pytest.mark.parametrize(("version", "longer"), [("1.2.3", True), ("1.3.0", False)])
def test_slices_are_longer_where_their_end_takes_long(opens: Open, version: str, longer: bool) -> None:
    """As with an abort that is heard late, unless the runtime ends after a token by itself."""
    engine = opens(version, SimulatedModel(abort_latency=200, profile=Profile(decode_tps=50)))
    engine.loaded.prefilled(1000, 1000.0)
    assert (next(engine.loaded.slices(9999)) > 1900) is longer


def test_a_slow_models_first_slice_is_no_longer_than_the_others(opens: Open) -> None:
    """By what the self-test told of it; the first long prompt need not be read for that."""
    engine = opens("1.3.0", SimulatedModel(profile=Profile(prefill_tps=120)))
    assert list(engine.loaded.slices(300)) == [128, 256]


@pytest.mark.parametrize(
    ("simulated", "words"),
    [
        (SimulatedModel(init_fail=True), "could not load|refused|failed"),
        (SimulatedModel(out_of_npu_memory=True), "memory"),
    ],
    ids=["init fails", "out of NPU memory"],
)
def test_a_load_that_fails_says_why(
    opens: Open, monkeypatch: pytest.MonkeyPatch, version: str, simulated: SimulatedModel, words: str
) -> None:
    """In the runtime's own reasons, not its number alone; and nothing of it stays."""
    closed, close = list[handle.Handle](), handle.Handle.close
    monkeypatch.setattr(handle.Handle, "close", lambda self: closed.append(self) or close(self))
    with pytest.raises(ModelRefused, match=f"(?i){words}"):
        opens(version, simulated)
    assert len(closed) == 1


def test_an_error_in_mid_answer_is_an_engine_that_failed(opens: Open, version: str) -> None:
    """After every token that was said before it."""
    engine = opens(version, SimulatedModel(error_after=3), engine_options={"self_test": 0})
    tokens = ask(engine, "Tell me of the sea")
    pieces = iter(engine.generate(Prompt(tokens, 40), Sampling(**GREEDY)))  # type: ignore[arg-type]
    assert [next(pieces).token for _ in range(3)] == expected(tokens, 3)
    with pytest.raises(EngineFailed):
        next(pieces)


def test_an_abort_that_nobody_hears_ends_all_the_same(opens: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pausing, which the runtime does hear; and the next run does not go on from there."""
    monkeypatch.setattr(handle, "DEAF", 0.1)
    engine = opens("1.2.3", SimulatedModel(ignore_abort=True, answers=LONG, profile=Profile(decode_tps=500)))
    # Found out with an abort, which is not heard here; and a kept conversation cannot be paused.
    engine.loaded.cache.reuse = True
    tokens = ask(engine, "Tell me of the sea")
    generation = engine.generate(Prompt(tokens, 3000), Sampling(**GREEDY))  # type: ignore[arg-type]
    pieces = iter(generation)
    next(pieces)
    call = generation._call
    generation.abort()
    list(pieces)
    assert generation.end is End.ABORTED
    assert call is not None and call.paused
    other = ask(engine, "Hello")
    assert run(engine, other)[0] == Language(answers=LONG).expected_answer(other, 40)


def test_an_engine_closed_in_mid_answer_has_not_answered(opens: Open, version: str) -> None:
    """What was said is no whole answer, and is not told as one."""
    engine = opens(version, SimulatedModel(answers=LONG, profile=Profile(decode_tps=50)))
    tokens = ask(engine, "Tell me of the sea")
    generation = engine.generate(Prompt(tokens, 1000), Sampling(**GREEDY))  # type: ignore[arg-type]
    pieces = iter(generation)
    next(pieces)
    engine.close()
    assert 1 + len(list(pieces)) < len(Language(answers=LONG).expected_answer(tokens, 1000))
    assert generation.end is End.ABORTED


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
@pytest.mark.parametrize("cached", ["no", "yes"])
def test_nothing_of_a_run_that_was_left_stays_in_a_kept_conversation(opens: Open, version: str, cached: str) -> None:
    """Whoever comes next may have a prompt that begins like one from before it."""
    switches = {"last_token_cached": cached}
    paced = SimulatedModel(full_attention=False, switches=switches, profile=Profile(decode_tps=500))
    engine = opens(version, paced)
    mine = ask(engine, "Hello, and tell me all that you know of the sea, the sky and what lies between them")
    answer = run(engine, mine)[0]
    stranger = iter(engine.generate(Prompt(ask(engine, "Who?"), 30), Sampling(**GREEDY)))  # type: ignore[arg-type]
    next(stranger)
    del stranger
    turn = [*mine, *answer, *ask(engine, "And then?")]
    assert run(engine, turn)[0] == expected(turn)


@pytest.mark.parametrize("reuse", [False, True], ids=["kept", "compared"])
def test_a_window_that_was_shifted_is_not_taken_for_cached(opens: Open, reuse: bool) -> None:
    """An abort that is heard late has the runtime go on past the end of the context, and forget the older half."""
    simulated = SimulatedModel(
        full_attention=reuse,
        switches={"prefill_counts_cached": "yes" if reuse else "no"},
        max_context_limit=512,
        abort_latency=150,
        profile=Profile(prefill_tps=5000, decode_tps=1000),
    )
    engine = opens("1.2.3", simulated)
    assert engine.loaded.cache.reuse is engine.loaded.counts_cached is reuse
    tokens = ask(engine, "Tell me of " + "the sea and the sky " * 60)[-500:]
    answer = expected(tokens, 12)
    assert run(engine, tokens, 12)[:2] == (answer, End.LENGTH)
    assert (engine.loaded.handle.cache_size() or 0) < 500
    again, _, stats = run(engine, tokens, 6)
    assert (again, stats.cached_tokens) == (answer[:6], 0)


def test_what_was_said_after_an_abort_is_no_kept_conversation(opens: Open) -> None:
    """The next turn never heard of it."""
    paced = SimulatedModel(full_attention=False, abort_latency=100, profile=Profile(decode_tps=1000))
    engine = opens("1.2.3", paced)
    tokens = ask(engine, "Tell me of the sea")
    answer, _, _ = run(engine, tokens, 3)
    assert (engine.loaded.handle.cache_size() or 0) > len(tokens) + len(answer)
    turn = [*tokens, *answer, *ask(engine, "And then?")]
    assert run(engine, turn)[0] == expected(turn)


@pytest.mark.parametrize("cached", ["no", "yes"])
@pytest.mark.parametrize("sampling", [Sampling(**GREEDY), Sampling(temperature=0.0, seed=1)], ids=["native", "logits"])  # type: ignore[arg-type]
def test_a_kept_conversation_is_prefilled_in_slices_too(opens: Open, cached: str, sampling: Sampling) -> None:
    """As long as the runtime keeps what it was given and no more; else in one go, or four tokens at a time."""
    simulated = SimulatedModel(full_attention=False, switches={"last_token_cached": cached})
    engine = opens("1.2.3", simulated, engine_options={"prefill_slice": 128})
    tokens, seen = engine.tokenizer.encode("word " * 600)[:600], list[int]()
    generation = engine.generate(Prompt(tokens, 4), sampling, seen.append)
    assert [piece.token for piece in generation] == expected(tokens, 4)
    assert seen == sorted(seen) and seen[-1] == 600
    if cached == "no":
        assert seen[:4] == [128, 256, 384, 512]


def test_texts_that_are_missing_or_split_are_no_loss(opens: Open, version: str) -> None:
    """The bytes come from the tokens."""
    for simulated in (
        SimulatedModel(null_text=True),
        SimulatedModel(split_utf8=True),
        SimulatedModel(last_token_late=50),
    ):
        engine = opens(version, simulated)
        for question in QUESTIONS:
            tokens = ask(engine, question)
            assert run(engine, tokens)[0] == expected(tokens)


def test_an_abort_before_between_and_after(opens: Open, version: str) -> None:
    """From another thread, at any moment; the next answer is whole."""
    engine = opens(version, SimulatedModel(profile=Profile(decode_tps=400)))
    tokens = ask(engine, "Tell me of the sea")
    for moment in range(4):
        generation = engine.generate(Prompt(tokens, 300), Sampling(**GREEDY))  # type: ignore[arg-type]
        pieces: list[Piece] = []
        runner = threading.Thread(target=lambda to=pieces, of=generation: to.extend(of))  # type: ignore[misc]
        if moment == 0:
            generation.abort()
        runner.start()
        while moment > len(pieces) and runner.is_alive():
            pass
        generation.abort()
        runner.join(WAIT)
        assert not runner.is_alive()
        generation.abort()
        assert [piece.token for piece in pieces] == expected(tokens, 300)[: len(pieces)]
    assert run(engine, tokens)[0] == expected(tokens)


def test_a_context_that_is_too_long_for_the_file_is_the_files(tmp_path: Path, runtime_dir: Path) -> None:
    """Asked for more than it was converted for, it says so."""
    write_model(tmp_path, SimulatedModel(max_context_limit=1024))
    model = read_manifest(tmp_path / "manifest.toml")
    with pytest.raises(ModelRefused, match="1024"):
        RkllmEngine.open(replace(model, context_length=4096), Setup(runtime_dir, rkllm_library="simulator"))
