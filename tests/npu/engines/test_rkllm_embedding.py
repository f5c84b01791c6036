"""Vectors from the last hidden layer, on every family, against a simulator that knows each row."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.engine import Ability, EmbeddingEngine, Pooling, Prompt, Sampling
from npu.engines import Setup
from npu.engines.rkllm.embedding import RkllmEmbedding
from npu.engines.rkllm.engine import RkllmEngine
from npu.errors import ContextTooLong, EngineFailed, PromptRefused
from npu.simulator import SWITCHES, Profile, SimulatedModel
from tests.npu.engines.test_rkllm import GREEDY, LANGUAGE, QUESTIONS, Open, ask, expected, run
from tests.npu.engines.test_rkllm import opens as opens
from tests.npu.engines.test_rkllm import version as version

WIDTH = SimulatedModel().hidden_size
BOTH = frozenset({Ability.TEXT, Ability.EMBEDDING})
WORDS = "One two three four five six seven eight nine ten, and so on until it is long enough."


def vector(engine: RkllmEngine, tokens: list[int]) -> list[float]:
    found = engine.embed(tokens).result()
    assert found is not None
    return list(found)


def rows(tokens: list[int], width: int = WIDTH) -> list[list[float]]:
    return LANGUAGE.hidden(tokens, width)


def short_parts(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """As if rows were so large that no more of them fit."""
    monkeypatch.setattr("npu.engines.rkllm.embedding.CALLBACK_BYTES", 4 * WIDTH * tokens)


@pytest.mark.parametrize("pooling", Pooling)
def test_a_vector_is_the_models_own(opens: Open, version: str, pooling: Pooling) -> None:
    """Also of a text that begins as another, of the same once more, and between two answers."""
    engine = opens(version, abilities=BOTH, pooling=pooling)
    assert isinstance(engine, EmbeddingEngine)
    assert engine.embedding_length == WIDTH
    for text in (WORDS, WORDS, WORDS + " More.", "Grüße"):
        tokens = engine.tokenizer.encode(text)
        all_rows = rows(tokens)
        wanted = (
            all_rows[-1]
            if pooling is Pooling.LAST
            else [sum(column) / len(tokens) for column in zip(*all_rows, strict=True)]
        )
        reading = engine.embed(tokens)
        assert reading.result() == pytest.approx(wanted, abs=1e-6)
        assert (reading.stats.prompt_tokens, reading.stats.cached_tokens) == (len(tokens), 0)
        question = ask(engine, text)
        assert run(engine, question)[0] == expected(question)


@pytest.mark.parametrize(
    "switch", [f"{name}={value}" for name, values in SWITCHES.items() for value in values[1:]], ids=str
)
def test_no_open_question_changes_a_vector(opens: Open, version: str, switch: str) -> None:
    """However the vendor's library does what nobody has documented."""
    name, value = switch.split("=")
    engine = opens(version, SimulatedModel(switches={name: value}), abilities=BOTH)
    for text in (WORDS, WORDS + " More."):
        tokens = engine.tokenizer.encode(text)
        assert vector(engine, tokens) == rows(tokens)[-1]


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_a_long_text_is_read_in_parts(opens: Open, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The last row is the same; the simulator would die of more than 8 MB at once."""
    engine = opens(version, SimulatedModel(hidden_size=32768), abilities=BOTH)
    tokens = engine.tokenizer.encode(WORDS * 3)[:80]
    assert len(tokens) > 64
    assert vector(engine, tokens) == rows(tokens, 32768)[-1]
    small = opens(version, abilities=BOTH)
    short_parts(monkeypatch, 16)
    for count in (15, 16, 17, 32, 33):
        assert vector(small, tokens[:count]) == rows(tokens[:count])[-1]


def test_a_long_text_that_cannot_be_parted_is_refused(
    opens: Open, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """With the figures and the reason."""
    mean = opens(version, abilities=BOTH, pooling=Pooling.MEAN)
    last = opens(version, abilities=BOTH)
    short_parts(monkeypatch, 16)
    with pytest.raises(PromptRefused, match=r"17 tokens.* 16 at most\. A mean"):
        mean.embed([70] * 17)
    if not last.loaded.family.CAPABILITIES.cache_size:
        with pytest.raises(PromptRefused, match=r"17 tokens.* in parts"):
            last.embed([70] * 17)


def test_an_abort_is_heard_between_two_parts(opens: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before the first; the next text is whole."""
    engine = opens("1.3.0", abilities=BOTH)
    short_parts(monkeypatch, 16)
    tokens = engine.tokenizer.encode(WORDS)
    early = engine.embed(tokens)
    early.abort()
    assert early.result() is None
    reading = engine.embed(tokens)
    take = RkllmEmbedding._take
    parts = 0

    def aborting(self: RkllmEmbedding, results: object) -> object:
        nonlocal parts
        parts += 1
        if parts == 2:
            self._aborted = True
        return take(self, results)  # type: ignore[arg-type]

    monkeypatch.setattr(RkllmEmbedding, "_take", aborting)
    early = engine.embed(tokens)
    assert early.result() is None
    assert parts == 2
    assert reading.result() == rows(tokens)[-1]


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_the_three_hundredth_text_takes_as_long_as_the_first(opens: Open, version: str) -> None:
    """By the simulator's own clock, where each row that stays costs every later run a millisecond."""
    paced = SimulatedModel(leak=1000, profile=Profile(prefill_tps=10_000), time_scale=0.0001)
    engine = opens(version, paced, abilities=BOTH)
    tokens = engine.tokenizer.encode(WORDS)
    for _ in range(300):
        reading = engine.embed(tokens)
        assert reading.result() is not None
        assert reading.stats.prefill_ms == pytest.approx(len(tokens) / 10, abs=0.01)


@pytest.mark.parametrize("version", ["1.2.0", "1.2.1b1"])
def test_rows_do_not_stay_where_no_clock_tells(opens: Open, version: str) -> None:
    """A row that stays holds up every later run for a quarter of an hour."""
    engine = opens(version, SimulatedModel(leak=1e9), abilities=BOTH)
    for text in QUESTIONS:
        tokens = engine.tokenizer.encode(text)
        assert vector(engine, tokens) == rows(tokens)[-1]


def test_rows_are_released_where_the_runtime_can_be_told(opens: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even without a cleared cache nothing stays."""
    engine = opens(
        "1.3.0", SimulatedModel(leak=1000, profile=Profile(prefill_tps=10_000), time_scale=0.0001), abilities=BOTH
    )
    tokens = engine.tokenizer.encode(WORDS)
    monkeypatch.setattr(engine.loaded.cache, "clear", lambda: None)
    # Nothing in common with the text before, so that none of it is found in the cache.
    times = []
    for first in (70, 71, 72):
        reading = engine.embed([first, *tokens])
        assert reading.result() is not None
        times.append(reading.stats.prefill_ms)
    assert times == [pytest.approx((len(tokens) + 1) / 10, abs=0.01)] * 3


def test_what_cannot_be_embedded(opens: Open) -> None:
    """Refused before the runtime is touched."""
    engine = opens("1.3.0", SimulatedModel(max_context_limit=256), abilities=BOTH)
    assert len(vector(engine, [70] * 256)) == WIDTH
    with pytest.raises(ContextTooLong):
        engine.embed([70] * 257)
    with pytest.raises(PromptRefused, match="empty"):
        engine.embed([])
    with pytest.raises(PromptRefused, match="vocabulary"):
        engine.embed([10**6])
    engine.close()
    with pytest.raises(EngineFailed):
        engine.embed([70])


def test_the_card_learns_the_width(opens: Open, runtime_dir: Path) -> None:
    """From the first load on; a model that only writes is not asked for rows."""
    engine = opens("1.2.3", abilities=BOTH)
    setup = Setup(runtime_dir, rkllm_library="simulator-1.2.3")
    assert RkllmEngine.describe(engine._model, setup).embedding_length == WIDTH
    assert opens("1.2.3").embedding_length == 0
    assert list(engine.generate(Prompt(ask(engine, "Hi"), 3), Sampling(**GREEDY)))  # type: ignore[arg-type]
