"""Each model of this board, through the engine that serves it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from npu.engine import Ability, End, Generation, Prompt, Sampling
from npu.engines import Setup
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.facts import read_loaded
from npu.model import Model
from npu.self_test import Verdict
from npu.template_search import find_template

pytestmark = pytest.mark.timeout(900)

ANSWER = 48


@pytest.fixture
def text_model(model: Model) -> Model:
    """A model that answers."""
    if Ability.TEXT not in model.abilities:
        pytest.skip(f"{model.id} is not made for text")
    return model


def asked(model: Model, engine: RkllmEngine, *turns: str) -> list[int]:
    """A conversation, the user's turn first, as tokens."""
    template = find_template(model, None)
    if template is None:
        return engine.tokenizer.encode(" ".join(turns), add_special=True)
    messages = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(turns)]
    return engine.tokenizer.encode(template.render(messages, enable_thinking=False))


def said(generation: Generation) -> list[int]:
    return [piece.token for piece in generation]


def generation(engine: RkllmEngine, tokens: Sequence[int], count: int = ANSWER, **sampling: object) -> Generation:
    chosen = {
        name: getattr(engine.loaded.defaults, name) for name in engine.loaded.defaults.__dataclass_fields__
    } | sampling
    return engine.generate(Prompt(tokens, count), Sampling(**chosen))  # type: ignore[arg-type]


def test_it_loads(model: Model, engine: RkllmEngine, setup: Setup) -> None:
    """And tells its runtime; where it is for text, its text is no nonsense."""
    assert engine.context_length >= 256
    loaded = read_loaded(model, setup)
    assert loaded is not None and loaded.runtime
    if loaded.self_test is not None:
        assert loaded.self_test.text is not Verdict.SUSPECT, loaded.self_test.said


def test_it_answers(text_model: Model, engine: RkllmEngine) -> None:
    """With exact counts, twice in a row."""
    for question in ("What is the capital of France?", "Name three colours."):
        tokens = asked(text_model, engine, question)
        run = generation(engine, tokens)
        pieces = list(run)
        assert pieces and any(piece.data for piece in pieces)
        assert run.end in (End.EOS, End.LENGTH)
        assert (run.end is End.LENGTH) == (len(pieces) == ANSWER)
        assert (run.stats.prompt_tokens, run.stats.generated_tokens) == (len(tokens), len(pieces))
        assert 0 <= run.stats.cached_tokens < len(tokens)


def test_an_abort_ends_it(text_model: Model, engine: RkllmEngine) -> None:
    """Between two tokens; and the run after it is whole."""
    tokens = asked(text_model, engine, "Tell a long story about the sea.")
    run = generation(engine, tokens, 400)
    pieces = iter(run)
    next(pieces)
    run.abort()
    assert len(list(pieces)) < 399
    assert run.end is End.ABORTED
    after = generation(engine, asked(text_model, engine, "Name three colours."))
    assert said(after) and after.end in (End.EOS, End.LENGTH)


def test_a_second_turn_is_not_prefilled_from_its_start(text_model: Model, engine: RkllmEngine) -> None:
    """Of what both prompts begin with most was cached."""
    if not (engine.loaded.cache.reuse or engine.loaded.family.CAPABILITIES.cache_size):
        pytest.skip("this runtime, or this model, does not reuse what it has cached")
    first = asked(text_model, engine, "Name three colours. " * 8)
    answer = said(generation(engine, first, 8))
    text = engine.tokenizer.decode(answer).decode(errors="replace")
    turn = asked(text_model, engine, "Name three colours. " * 8, text, "And a fourth?")
    same = next((place for place, (a, b) in enumerate(zip(first, turn, strict=False)) if a != b), len(first))
    run = generation(engine, turn, 4)
    assert said(run)
    assert run.stats.cached_tokens > same // 2


def test_a_conversation_that_was_displaced_is_loaded(text_model: Model, engine: RkllmEngine) -> None:
    """Where the self-test has found that this works, and helps."""
    if engine.loaded.cache.parking is None:
        pytest.skip("conversations are not parked with this model: its notes say why")
    question = "Name three colours. " * 80
    first = asked(text_model, engine, question)
    answer = said(engine.generate(Prompt(first, 8, returns=True), engine.loaded.defaults))
    assert said(generation(engine, asked(text_model, engine, "What is the capital of France?"), 1))
    text = engine.tokenizer.decode(answer).decode(errors="replace")
    run = generation(engine, asked(text_model, engine, question, text, "And a fourth?"), 4)
    assert said(run)
    assert run.stats.parked_tokens > len(first) // 2


def test_a_seed_gives_the_same_again(text_model: Model, engine: RkllmEngine) -> None:
    """Sampled from logits by this program."""
    if not engine.loaded.family.CAPABILITIES.logits or not engine.loaded.samples_on_host:
        pytest.skip("this runtime gives no logits, or those of this model cannot be relied on")
    tokens = asked(text_model, engine, "Tell a story.")
    one, again = (said(generation(engine, tokens, 12, temperature=1.2, seed=7)) for _ in range(2))
    assert one == again


def test_it_embeds(model: Model, engine: RkllmEngine) -> None:
    """One text gives one vector, another one another."""
    if Ability.EMBEDDING not in model.abilities:
        pytest.skip(f"{model.id} is not made for embeddings")
    texts = ("The sea is calm.", "The sea is calm.", "Interest rates rose again.")
    vectors = []
    for text in texts:
        vector = engine.embed([*engine.tokenizer.encode(text), *engine.tokenizer.ending]).result()
        assert vector is not None and len(vector) == engine.embedding_length
        length = math.sqrt(sum(value * value for value in vector))
        assert math.isfinite(length) and length > 0
        vectors.append([value / length for value in vector])
    one, again, other = vectors
    assert math.dist(one, again) < 0.05 < math.dist(one, other)
