"""A model without a tokenizer beside it, asked in text, on every family whose runtime has a template of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from npu.engine import Ability, End, Piece, Prompt, Sampling, Stats, Turn
from npu.engines import Setup, describe
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.text import RkllmTextEngine
from npu.errors import AdapterMissing, ContextTooLong, EngineFailed, ModelRefused, PromptRefused, SamplingRefused
from npu.manifest import read_manifest
from npu.model import LoraAdapter, Model
from npu.rkllm.abi import FAMILIES
from npu.simulator import SWITCHES, Adapter, Language, Profile, SimulatedModel, write_adapter, write_model
from tests.npu.engines.test_rkllm import GREEDY, LANGUAGE, QUESTIONS

VERSIONS = tuple(abi.RUNTIMES[-1] for abi in FAMILIES[1:])
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]

Open = Callable[..., RkllmTextEngine]


def hidden(folder: Path, simulated: SimulatedModel | None = None, **changes: object) -> Model:
    """A simulated model without its tokenizer."""
    write_model(folder, simulated or SimulatedModel())
    (folder / "tokenizer.json").unlink()
    changes = {"sampling_defaults": GREEDY, **changes}
    return replace(read_manifest(folder / "manifest.toml"), **changes)  # type: ignore[arg-type]


@pytest.fixture
def opens(tmp_path: Path, runtime_dir: Path) -> Iterator[Open]:
    """Opens engines, and closes them."""
    opened: list[RkllmTextEngine] = []

    def opening(version: str, simulated: SimulatedModel | None = None, **changes: object) -> RkllmTextEngine:
        model = hidden(tmp_path / f"model{len(opened)}", simulated, **changes)
        engine = RkllmEngine.open(model, Setup(runtime_dir, rkllm_library=f"simulator-{version}"))
        assert isinstance(engine, RkllmTextEngine)
        opened.append(engine)
        return engine

    yield opening
    for engine in opened:
        engine.close()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """The newest runtime of each family that can."""
    name: str = request.param
    return name


def asked(text: str) -> list[int]:
    """The tokens the runtime makes of a message."""
    return LANGUAGE.tokenize(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def run(
    engine: RkllmTextEngine, text: str, count: int = 40, sampling: Sampling | None = None, **rest: object
) -> tuple[list[Piece], End, Stats]:
    prompt = Prompt((), count, turn=Turn(text), **rest)  # type: ignore[arg-type]
    generation = engine.generate(prompt, sampling or Sampling(**GREEDY))  # type: ignore[arg-type]
    return list(generation), generation.end, generation.stats


def same(pieces: list[Piece], answer: list[int]) -> bool:
    """Whether they are the answer, by its tokens and by its text."""
    said = b"".join(piece.data for piece in pieces)
    return ([piece.token for piece in pieces], said) == (answer, LANGUAGE.text(answer))


def test_a_message_is_answered(opens: Open, version: str) -> None:
    """To its end and up to a limit, with its tokens counted where the runtime tells."""
    engine, cut_apart = opens(version), False
    for question in QUESTIONS:
        answer = LANGUAGE.expected_answer(asked(question), 40)
        pieces, end, stats = run(engine, question)
        assert (same(pieces, answer), end, stats.generated_tokens) == (True, End.EOS, len(answer)), question
        assert stats.prompt_tokens == (len(asked(question)) if engine.family.CAPABILITIES.perf else 0)
        assert stats.cached_tokens == 0 and stats.prefill_ms >= 0
        for count in range(1, len(answer) + 1):
            pieces, end, _ = run(engine, question, count)
            assert ([piece.token for piece in pieces], end) == (answer[:count], End.LENGTH), (question, count)
            said = b"".join(piece.data for piece in pieces)
            # Bytes of a character that is not whole are kept back.
            assert LANGUAGE.text(answer).startswith(said)
            cut_apart = cut_apart or said != LANGUAGE.text(answer[:count])
    assert cut_apart


def test_an_engine_closed_in_mid_answer_has_not_answered(opens: Open, version: str) -> None:
    """What was said is no whole answer, and is not told as one."""
    long = {**SimulatedModel().answers, "Hello": "Hello there, and good evening to you all. " * 50}
    engine = opens(version, SimulatedModel(answers=long, profile=Profile(decode_tps=50)))
    pieces = iter(generation := engine.generate(Prompt((), 500, turn=Turn("Hello")), Sampling(**GREEDY)))  # type: ignore[arg-type]
    next(pieces)
    engine.close()
    assert 1 + len(list(pieces)) < len(Language(answers=long).expected_answer(asked("Hello"), 500))
    assert generation.end is End.ABORTED


def test_no_open_question_changes_an_answer(opens: Open, version: str) -> None:
    """However the vendor's library does what nobody has documented; also after an abort, and with characters in pieces."""
    switched = [{name: value} for name, values in SWITCHES.items() for value in values[1:]]
    for model in (*(SimulatedModel(switches=each) for each in switched), SimulatedModel(split_utf8=True)):
        engine = opens(version, model)
        for question in QUESTIONS[-2:]:
            answer = LANGUAGE.expected_answer(asked(question), 40)
            assert same(run(engine, question)[0], answer), model.switches
            pieces = iter(generation := engine.generate(Prompt((), 40, turn=Turn(question)), Sampling(**GREEDY)))  # type: ignore[arg-type]
            assert next(pieces).token == answer[0]
            generation.abort()
            list(pieces)
            assert generation.end is End.ABORTED
            assert same(run(engine, question, 3)[0], answer[:3]), model.switches
        engine.close()


def test_an_adapter_speaks(opens: Open, version: str, tmp_path: Path) -> None:
    """In turns with the model alone."""
    engine = opens(version, adapters=(LoraAdapter("poet", write_adapter(tmp_path / "poet")),))
    for name, voice in ((None, None), ("poet", Adapter("poet")), (None, None)):
        assert same(run(engine, "Hello", adapter=name)[0], LANGUAGE.expected_answer(asked("Hello"), 40, voice))
    with pytest.raises(AdapterMissing):
        run(engine, "Hello", adapter="bard")


def test_thinking_is_switched_where_the_runtime_can(opens: Open, version: str) -> None:
    """And is refused where it cannot, instead of thinking all the same."""
    engine = opens(version, SimulatedModel(thinking=True))
    language = SimulatedModel(thinking=True).language()
    pieces, _, _ = run(engine, "Hello")
    assert b"".join(piece.data for piece in pieces).startswith(b"<think>")
    quiet = Prompt((), 40, turn=Turn("Hello", thinking=False))
    if not engine.family.CAPABILITIES.thinking_flag:
        with pytest.raises(PromptRefused, match="kept from thinking"):
            engine.generate(quiet, Sampling(**GREEDY))  # type: ignore[arg-type]
        return
    wanted = language.expected_answer([*asked("Hello"), *language.tokenize("<think>\n\n</think>\n\n")], 40)
    assert [piece.token for piece in engine.generate(quiet, Sampling(**GREEDY))] == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["seed", "min_p", "typical_p", "logit_bias", "ignore_eos", "temperature"])
def test_what_needs_logits_is_refused(opens: Open, field: str) -> None:
    """By name, and with the reason; what the runtime samples for each run it may be told."""
    value = {"logit_bias": {5: 1.0}, "ignore_eos": True}.get(field, 0.5 if field != "seed" else 5)
    for version in (OLDEST, NEWEST):
        sampling = Sampling(**{**GREEDY, field: value})  # type: ignore[arg-type]
        if field == "temperature" and version == NEWEST:
            hot = opens(version, sampling_defaults={**GREEDY, "temperature": 100.0})
            assert same(run(hot, "Hello")[0], LANGUAGE.expected_answer(asked("Hello"), 40))
            continue
        with pytest.raises(SamplingRefused, match=r"no tokenizer\.json") as refused:
            run(opens(version), "Hello", sampling=sampling)
        assert refused.value.field == field


def test_a_prompt_that_is_too_long_is_told_from_a_broken_engine(opens: Open, version: str) -> None:
    """By whether the engine still answers; the next one is answered in any case."""
    engine = opens(version, SimulatedModel(max_context_limit=1024))
    with pytest.raises(ContextTooLong, match="1024 tokens, but the request needs at least"):
        run(engine, "word " * 1100)
    with pytest.raises(ContextTooLong, match="1024 tokens, but the request needs at least"):
        engine.generate(Prompt((), 4, turn=Turn("w" * 100_000)), Sampling(**GREEDY))  # type: ignore[arg-type]
    assert same(run(engine, "Hello")[0], LANGUAGE.expected_answer(asked("Hello"), 40))
    broken = opens(version, SimulatedModel(max_context_limit=1024, error_after=0))
    for text in ("Hello", "word " * 1100):
        with pytest.raises(EngineFailed):
            run(broken, text)


def test_tokens_without_text_are_no_answer(opens: Open) -> None:
    """A runtime that gives nothing else is told of, with what helps."""
    engine = opens(NEWEST, SimulatedModel(null_text=True))
    with pytest.raises(EngineFailed, match=r"no text.*tokenizer\.json"):
        run(engine, "Tell me of the sea")


def test_what_cannot_be_a_message(opens: Open) -> None:
    """Nothing, what C cannot read, and tokens."""
    engine = opens(NEWEST)
    for turn in (Turn(""), Turn("a\0b"), Turn("\ud800"), None):
        with pytest.raises(PromptRefused):
            engine.generate(Prompt((5,), 4, turn=turn), Sampling(**GREEDY))  # type: ignore[arg-type]
    engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        run(engine, "Hello")


def test_its_card_says_what_it_cannot_do(opens: Open, runtime_dir: Path) -> None:
    """Before it is loaded and after."""
    engine = opens(NEWEST)
    facts = describe(engine._model, Setup(runtime_dir, rkllm_library=f"simulator-{NEWEST}"))
    assert (facts.chat, facts.completion, facts.context_length) == (True, False, engine.context_length)
    assert {"seed", "logit_bias"} <= set(facts.refuses)
    assert any("single message" in note for note in facts.notes)
    assert facts.last_load is not None and facts.last_load.runtime == NEWEST


@pytest.mark.parametrize(
    ("version", "changes", "words"),
    [
        ("1.1.4", {}, "no chat template of its own"),
        (NEWEST, {"abilities": frozenset({Ability.EMBEDDING})}, "embedding and reranking"),
        (NEWEST, {"template": "{{ messages }}"}, "chat_template"),
        (NEWEST, {"template_options": {"tone": "calm"}}, "template_options"),
        (NEWEST, {"engine_options": {"refuse_suspect": 1}}, "refuse_suspect"),
        (NEWEST, {"cached_system_prompt": "Be brief."}, "cached_system_prompt"),
        (NEWEST, {"engine_options": {"n_batch": 2}}, "n_batch"),
        (NEWEST, {"engine_options": {"prefill_slice": 128}}, "prefill_slice"),
        (OLDEST, {"template_options": {"enable_thinking": False}}, "cannot switch thinking off"),
    ],
)
def test_what_needs_the_tokenizer_says_so(
    tmp_path: Path, runtime_dir: Path, version: str, changes: dict[str, object], words: str
) -> None:
    """Whether it is described or opened, and with what to copy where."""
    model, setup = hidden(tmp_path, **changes), Setup(runtime_dir, rkllm_library=f"simulator-{version}")
    for refused in (describe, RkllmEngine.open):
        with pytest.raises(ModelRefused, match=words) as said:
            refused(model, setup)
        assert "tokenizer.json" in str(said.value)


def test_a_template_the_runtime_cannot_read_is_no_template(tmp_path: Path, runtime_dir: Path) -> None:
    """It would be asked without one."""
    model = hidden(tmp_path, SimulatedModel(template_parses=False))
    with pytest.raises(ModelRefused, match=r"cannot read the chat template.*tokenizer\.json"):
        RkllmEngine.open(model, Setup(runtime_dir, rkllm_library="simulator"))
