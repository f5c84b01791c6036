"""Answers that we sample from logits are the same however late the runtime hears an abort, against a simulator of each family."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from npu.engine import End, Prompt, Sampling
from npu.simulator import Profile, SimulatedModel
from tests.npu.engines.test_rkllm import GREEDY, LANGUAGE, QUESTIONS, Open, ask, expected, run
from tests.npu.engines.test_rkllm import opens as opens

PAUSING = ("1.2.3", "1.3.0")
WAIT = 60.0
UNTRIED = {"self_test": 0}
SEEDED = Sampling(temperature=0.0, seed=1)
HOT = Sampling(temperature=1.3, seed=7, ignore_eos=True)


def slow_to_hear(latency: float, **changes: object) -> SimulatedModel:
    """Between an abort and its effect this model says several tokens."""
    return SimulatedModel(abort_latency=latency, profile=Profile(decode_tps=200), **changes)  # type: ignore[arg-type]


def wait_for(what: Callable[[], bool]) -> None:
    """Until it is so."""
    until = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < until
        time.sleep(0.001)


def hot_answer(opens: Open, tokens: list[int], count: int) -> list[int]:
    """What the seed draws where aborts are heard at once."""
    return run(opens("1.3.0", engine_options=UNTRIED), tokens, count, HOT)[0]


@pytest.mark.parametrize(
    ("version", "latency", "after_pause"),
    [
        *((version, latency, "append") for version in ("1.2.0", "1.2.1b1") for latency in (60, 1400)),
        *((version, latency, way) for version in PAUSING for latency in (60, 1400) for way in ("append", "compare")),
    ],
)
def test_an_abort_heard_late_changes_no_answer(opens: Open, version: str, latency: float, after_pause: str) -> None:
    """Neither of this request nor of the next, sampled by whom it may be, nor after one that was left in the middle."""
    engine = opens(version, slow_to_hear(latency, switches={"after_pause": after_pause}), engine_options=UNTRIED)
    engine.loaded.cache.reuse = True
    conversation: list[int] = []
    for question in QUESTIONS[: 2 if latency < 1000 else 1]:
        conversation += ask(engine, question)
        answer = run(engine, conversation, 4, SEEDED)[0]
        assert answer == expected(conversation, 4)
        assert run(engine, conversation, 4, HOT)[0] == hot_answer(opens, conversation, 4)
        left = engine.generate(Prompt(conversation, 40), SEEDED)
        pieces = iter(left)
        assert next(pieces).token == answer[0]
        left.abort()
        assert list(pieces) == [] and left.end is End.ABORTED
        assert run(engine, conversation, 4)[0] == answer
        conversation += answer


@pytest.mark.parametrize("version", PAUSING)
@pytest.mark.parametrize("after_pause", ["append", "compare"])
@pytest.mark.parametrize("cached", ["no", "yes"])
def test_a_conversation_sampled_by_us_is_prefilled_once(
    opens: Open, version: str, after_pause: str, cached: str
) -> None:
    """Whichever way the runtime goes on after a pause, and whatever it keeps of a token it said."""
    switches = {"after_pause": after_pause, "last_token_cached": cached}
    engine = opens(version, slow_to_hear(60, switches=switches), engine_options=UNTRIED)
    engine.loaded.cache.reuse = True
    conversation = ask(engine, QUESTIONS[0])
    answer = run(engine, conversation, 5, HOT)[0]
    for question in QUESTIONS[1:3]:
        new = ask(engine, question)
        conversation += answer + new
        answer, _, stats = run(engine, conversation, 5, HOT)
        assert answer == hot_answer(opens, conversation, 5)
        assert stats.prompt_tokens == len(conversation)
        if cached == "no" or after_pause == "compare":
            assert stats.cached_tokens >= len(conversation) - len(new) - 1
    # And from the runtime's own answers to ours.
    said = run(engine, conversation, 5)[0]
    conversation += said + ask(engine, QUESTIONS[3])
    answer, _, stats = run(engine, conversation, 5, HOT)
    assert answer == hot_answer(opens, conversation, 5)
    if after_pause == "compare" or cached == "no":
        assert stats.cached_tokens > 0


@pytest.mark.parametrize("version", PAUSING)
@pytest.mark.parametrize("cached", ["no", "yes"])
def test_a_model_without_reuse_is_paused_too(opens: Open, version: str, cached: str) -> None:
    """What is new is put behind what is there, slice by slice, and nothing else is in between."""
    switches = {"last_token_cached": cached}
    options = {**UNTRIED, "prefill_slice": 128}
    engine = opens(version, slow_to_hear(60, full_attention=False, switches=switches), engine_options=options)
    engine.loaded.cache.reuse = False
    tokens, seen = engine.tokenizer.encode("word " * 300)[:300], list[int]()
    generation = engine.generate(Prompt(tokens, 4), SEEDED, seen.append)
    assert [piece.token for piece in generation] == expected(tokens, 4)
    assert seen == sorted(seen) and seen[-1] == 300
    if cached == "no":
        assert seen[:3] == [128, 256, 299]


@pytest.mark.parametrize(("way", "reuse"), [("append", True), ("append", False), ("compare", True)])
def test_an_end_inside_the_prompt_does_no_harm(opens: Open, way: str, reuse: bool) -> None:
    """Where a slice ends the model may want to say nothing at all, and then there is no pause; yet no logits are asked for
    all that came before."""
    switches = {"eos_delivered": "no", "after_pause": way}
    simulated = SimulatedModel(switches=switches, vocab_size=151_936, full_attention=reuse)
    engine = opens("1.2.3", simulated, engine_options={**UNTRIED, "prefill_slice": 32})
    engine.loaded.cache.reuse = reuse
    turn = ask(engine, QUESTIONS[2])
    ended = [*turn, *LANGUAGE.expected_answer(turn, 40)]
    ended = [*[70] * (-len(ended) % 32), *ended]
    for tokens in ([*ended, 70], [*ended, *ask(engine, QUESTIONS[0])]):
        assert run(engine, tokens, 4, SEEDED)[0] == expected(tokens, 4)


@pytest.mark.parametrize("inside", [False, True], ids=["before it begins", "inside"])
@pytest.mark.parametrize("version", PAUSING)
def test_after_an_abort_nobody_counts_on_a_pause(opens: Open, version: str, inside: bool) -> None:
    """Aborted before it began, a run leaves the pause before it as it was; aborted inside, it leaves none."""
    profile = Profile(decode_tps=200, logits_ms=200 if inside else 0)
    engine = opens(version, SimulatedModel(profile=profile), engine_options=UNTRIED)
    engine.loaded.cache.reuse = True
    conversation = ask(engine, QUESTIONS[0])
    for sampling in (SEEDED, Sampling(**GREEDY)):  # type: ignore[arg-type]
        conversation += run(engine, conversation, 2, SEEDED)[0] + [70]
        generation = engine.generate(Prompt(conversation, 40), SEEDED)
        runner = threading.Thread(target=list, args=(generation,))
        aborter = threading.Thread(target=generation.abort)
        if inside:
            runner.start()
            wait_for(
                lambda of=generation: engine.loaded.handle._call is not None and engine.loaded.handle._call is of._call
            )  # type: ignore[misc]
            aborter.start()
        else:
            with engine.loaded.handle._ending:
                runner.start()
                wait_for(lambda of=generation: of._call is not None)  # type: ignore[misc]
                aborter.start()
                wait_for(lambda of=generation: of._call.stopped)  # type: ignore[misc, union-attr]
        runner.join(WAIT)
        aborter.join(WAIT)
        assert generation.end is End.ABORTED
        conversation.append(71)
        assert run(engine, conversation, 3, sampling)[0] == expected(conversation, 3)


@pytest.mark.parametrize("version", ["1.2.0", *PAUSING])
def test_what_nothing_makes_exact_is_refused(opens: Open, version: str) -> None:
    """A model without reuse, on a runtime that hears aborts late and compares after a pause, or has none: the self-test
    finds out."""
    profile = Profile(prefill_tps=4000, decode_tps=200)
    simulated = replace(slow_to_hear(60, full_attention=False, switches={"after_pause": "compare"}), profile=profile)
    engine = opens(version, simulated)
    assert not engine.loaded.samples_on_host
    assert run(engine, ask(engine, QUESTIONS[0]))[0] == expected(ask(engine, QUESTIONS[0]))


@pytest.mark.parametrize("version", ["1.2.0", *PAUSING])
def test_the_self_test_finds_late_aborts_no_fault_of_the_logits(opens: Open, version: str) -> None:
    """So a seed is served."""
    engine = opens(version, replace(slow_to_hear(60), profile=Profile(prefill_tps=1000, decode_tps=200)))
    assert engine.loaded.samples_on_host and engine.loaded.cache.reuse
    tokens = ask(engine, QUESTIONS[0])
    assert run(engine, tokens, 4, Sampling(**{**GREEDY, "seed": 1}))[0] == expected(tokens, 4)  # type: ignore[arg-type]
