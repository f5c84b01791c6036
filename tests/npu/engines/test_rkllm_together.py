"""Several prompts answered by one run of the NPU, in lock-step, on each family that can, against a simulator of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from npu.engine import Ability, End, LockStepEngine, Prompt, Sampling
from npu.engines import Setup
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.facts import read_loaded
from npu.errors import AdapterMissing, ContextTooLong, EngineFailed, ModelRefused, PromptRefused, SamplingRefused
from npu.manifest import read_manifest
from npu.model import LoraAdapter
from npu.self_test import Verdict
from npu.simulator import Adapter, Language, Profile, SimulatedModel, write_adapter, write_model
from tests.npu.engines.test_rkllm import GREEDY, LANGUAGE, LONG, QUESTIONS, Open, ask, expected, run
from tests.npu.engines.test_rkllm import opens as opens

ABLE = ("1.2.3", "1.3.0")
WAIT = 60.0
PLAIN = Sampling(**GREEDY)  # type: ignore[arg-type]
FOUR = {"n_batch": 4}


@pytest.fixture(params=ABLE)
def able(request: pytest.FixtureRequest) -> str:
    """The newest runtime of each family with slots."""
    name: str = request.param
    return name


@pytest.mark.parametrize("told", ["yes", "no"])
def test_each_slot_has_the_answer_it_would_have_alone(opens: Open, able: str, told: str) -> None:
    """To its own limit, whatever the others say, whether or not an end is told as a token; in several runs one after
    another and with slots left over."""
    engine = opens(able, SimulatedModel(switches={"eos_delivered": told}), engine_options=FOUR)
    assert isinstance(engine, LockStepEngine) and engine.slots == 4
    asked = [ask(engine, question) for question in QUESTIONS]
    for prompts in (
        [Prompt(asked[0], 40), Prompt(asked[1], 3), Prompt(asked[2], 40), Prompt(asked[3], 1)],
        [Prompt(asked[4], 40), Prompt(asked[0], 7)],
        [Prompt(asked[2], 2)],
    ):
        generations = engine.generate_together(prompts, PLAIN)
        for prompt, generation in zip(prompts, generations, strict=True):
            said = [piece.token for piece in generation]
            whole = expected([*prompt.tokens], 40)
            assert said == whole[: prompt.max_tokens]
            assert generation.end is (End.EOS if len(whole) < prompt.max_tokens else End.LENGTH)
            assert generation.stats.generated_tokens == len(said)
            assert generation.stats.prompt_tokens == len(prompt.tokens)
        assert run(engine, asked[1])[0] == expected(asked[1])


def test_a_common_beginning_is_prefilled_once_for_each_slot(opens: Open, able: str) -> None:
    """Which items of a batch have, as a rule."""
    engine = opens(able, engine_options={"n_batch": 2})
    systems = [engine.tokenizer.encode(f"<|im_start|>system\n{word * 40}<|im_end|>\n") for word in ("brief ", "kind ")]
    prompts = [Prompt([*systems[place % 2], *ask(engine, QUESTIONS[place])], 4) for place in range(4)]
    first, second = engine.generate_together(prompts[:2], PLAIN), engine.generate_together(prompts[2:], PLAIN)
    for generation in (*first, *second):
        assert len([*generation]) == 4
    assert (
        max(generation.stats.cached_tokens for generation in first) <= 1
    )  # a question of the self-test begins so, too
    for system, generation in zip(systems, second, strict=True):
        assert len(system) <= generation.stats.cached_tokens <= len(system) + 6


def test_an_abort_ends_one_slot_and_not_the_others(opens: Open, able: str) -> None:
    """Before, between and inside; when all have ended the engine is free at once."""
    says = Language(answers=LONG).expected_answer
    engine = opens(able, SimulatedModel(answers=LONG, profile=Profile(decode_tps=200)), engine_options=FOUR)
    asked = [ask(engine, question) for question in QUESTIONS[:4]]
    prompts = [Prompt(tokens, 40) for tokens in asked]
    before, inside, whole, dropped = engine.generate_together(prompts, PLAIN)
    before.abort()
    assert list(before) == [] and before.end is End.ABORTED
    pieces = iter(inside)
    assert next(pieces).token == says(asked[1], 40)[0]
    read = iter(whole)
    said = [next(read).token for _ in range(5)]  # and as many are kept for the others
    inside.abort()
    assert list(pieces) == []
    assert (inside.end, inside.stats.generated_tokens) == (End.ABORTED, 1)
    other = iter(dropped)
    next(other)
    del other
    assert [*said, *(piece.token for piece in read)] == says(asked[2], 40)
    assert whole.end is End.EOS
    left = engine.generate_together([Prompt(asked[1], 3000)] * 2, PLAIN)
    for generation in left:
        next(iter(generation))
        generation.abort()
    assert (engine.loaded.handle.cache_size() or 0) < 400 < len(says(asked[1], 3000))
    assert run(engine, asked[0])[0] == says(asked[0], 40)


def test_an_engine_closed_in_mid_answer_has_not_answered(opens: Open, able: str) -> None:
    """In no slot: what was said is no whole answer, and is not told as one."""
    engine = opens(able, SimulatedModel(answers=LONG, profile=Profile(decode_tps=50)), engine_options=FOUR)
    one, other = engine.generate_together([Prompt(ask(engine, QUESTIONS[1]), 1000)] * 2, PLAIN)
    pieces = iter(one)
    next(pieces)
    engine.close()
    list(pieces)
    list(other)
    assert one.end is other.end is End.ABORTED


def test_slots_may_be_read_by_threads(opens: Open, able: str) -> None:
    """Each gets its own, and an abort of one need not wait for another."""
    engine = opens(able, SimulatedModel(profile=Profile(decode_tps=100)), engine_options=FOUR)
    prompts = [Prompt(ask(engine, question), 40) for question in QUESTIONS[:4]]
    generations = engine.generate_together(prompts, PLAIN)
    said: list[list[int]] = [[] for _ in prompts]
    threads = [
        threading.Thread(target=lambda to=to, of=of: to.extend(piece.token for piece in of))  # type: ignore[misc]
        for to, of in zip(said, generations, strict=True)
    ]
    for thread in threads:
        thread.start()
    generations[3].abort()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    for place in range(3):
        assert said[place] == expected([*prompts[place].tokens])
    assert generations[3].end is End.ABORTED


def test_a_failure_is_every_slots(opens: Open, able: str) -> None:
    """None of them is taken for a short answer."""
    engine = opens(able, SimulatedModel(error_after=3), engine_options={**FOUR, "self_test": 0})
    generations = engine.generate_together([Prompt(ask(engine, question), 40) for question in QUESTIONS[:3]], PLAIN)
    for generation in generations:
        pieces = iter(generation)
        assert [next(pieces).token for _ in range(3)]
        with pytest.raises(EngineFailed):
            next(pieces)


def test_one_answer_among_slots_is_right(opens: Open, able: str) -> None:
    """The others are filled up, and do not hold it up; a model without reuse keeps no history then."""
    for full_attention in (True, False):
        simulated = SimulatedModel(full_attention=full_attention, switches={"eos_delivered": "no"})
        engine = opens(able, simulated, engine_options=FOUR)
        conversation: list[int] = []
        for question in QUESTIONS:
            conversation += ask(engine, question)
            answer, end, _ = run(engine, conversation)
            assert (answer, end) == (expected(conversation), End.EOS)
            conversation += answer
        assert (engine.loaded.handle.cache_size(1) or 0) <= 1 + 40


def test_vectors_are_the_same_with_slots(opens: Open, able: str) -> None:
    """What fills the other slots is no part of them."""
    both = frozenset({Ability.TEXT, Ability.EMBEDDING})
    one, four = opens(able, abilities=both), opens(able, abilities=both, engine_options=FOUR)
    tokens = ask(one, QUESTIONS[0])
    assert four.embed(tokens).result() == one.embed(tokens).result() is not None


def test_what_needs_logits_is_refused_by_name(opens: Open, able: str, runtime_dir: Path) -> None:
    """On the card and by the engine, alone and together; nothing of that kind is tried by the self-test."""
    engine = opens(able, engine_options=FOUR)
    loaded = read_loaded(engine._model, Setup(runtime_dir))
    assert loaded is not None and loaded.self_test is not None and loaded.self_test.logits is Verdict.UNKNOWN
    tokens = ask(engine, QUESTIONS[0])
    with pytest.raises(SamplingRefused, match="n_batch = 4") as refused:
        engine.generate(Prompt(tokens, 4), Sampling(**{**GREEDY, "seed": 1}))  # type: ignore[arg-type]
    assert refused.value.field == "seed"
    with pytest.raises(SamplingRefused, match="n_batch = 4"):
        engine.generate_together([Prompt(tokens, 4)], Sampling(**{**GREEDY, "min_p": 0.5}))  # type: ignore[arg-type]
    with pytest.raises(PromptRefused, match="5 prompts"):
        engine.generate_together([Prompt(tokens, 4)] * 5, PLAIN)
    with pytest.raises(ContextTooLong):
        engine.generate_together([Prompt(tokens, 4), Prompt(tokens, 5000)], PLAIN)
    with pytest.raises(ModelRefused, match="reranked"):
        opens(able, engine_options=FOUR, abilities=frozenset({Ability.RERANK}))


@pytest.mark.parametrize("version", ["1.1.4", "1.2.0", "1.2.1b1"])
def test_families_without_slots_refuse_the_option(opens: Open, version: str) -> None:
    """With what to install."""
    with pytest.raises(ModelRefused, match=r"n_batch = 4.*1\.2\.1"):
        opens(version, engine_options=FOUR)


def test_the_card_tells_what_slots_cost(tmp_path: Path, runtime_dir: Path) -> None:
    """Memory for each of them, and what is refused."""
    write_model(tmp_path, SimulatedModel())
    model = read_manifest(tmp_path / "manifest.toml")
    setup = Setup(runtime_dir, rkllm_library="simulator")
    one, four = (RkllmEngine.describe(replace(model, engine_options={"n_batch": count}), setup) for count in (1, 4))
    assert four.memory_bytes - one.memory_bytes == 3 * 114_688 * one.context_length
    assert "n_batch = 4" in " ".join(four.notes) and "n_batch" not in " ".join(one.notes)
    assert "n_batch = 4" in four.refuses["seed"] and "seed" not in one.refuses


def test_one_adapter_speaks_in_all_slots(opens: Open, able: str, tmp_path: Path) -> None:
    """The runtime takes one for each run; a mixture is refused, and so is one that is not there."""
    poet = LoraAdapter("poet", write_adapter(tmp_path / "poet_lora.rkllm"))
    engine = opens(able, engine_options=FOUR, adapters=(poet,))
    asked = [ask(engine, question) for question in QUESTIONS[:2]]
    for name, voice in (("poet", Adapter("poet")), (None, None), ("poet", Adapter("poet"))):
        generations = engine.generate_together([Prompt(tokens, 40, name) for tokens in asked], PLAIN)
        for tokens, generation in zip(asked, generations, strict=True):
            assert [piece.token for piece in generation] == LANGUAGE.expected_answer(tokens, 40, voice)
    with pytest.raises(PromptRefused, match="same adapter"):
        engine.generate_together([Prompt(asked[0], 4), Prompt(asked[1], 4, "poet")], PLAIN)
    with pytest.raises(AdapterMissing):
        engine.generate_together([Prompt(asked[0], 4, "pirate")], PLAIN)
