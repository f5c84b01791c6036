"""LoRA adapters chosen per request, on every family, against a simulator that speaks otherwise with each."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.engine import Ability, Prompt, Sampling
from npu.engines import Setup, describe
from npu.engines.rkllm.engine import RkllmEngine
from npu.errors import AdapterMissing
from npu.model import LoraAdapter
from npu.simulator import Adapter, SimulatedModel, write_adapter
from tests.npu.engines.test_rkllm import GREEDY, LANGUAGE, Open, ask, expected
from tests.npu.engines.test_rkllm import opens as opens
from tests.npu.engines.test_rkllm import version as version

VOICES = {None: None, "poet": Adapter("poet"), "pirate": Adapter("pirate", 0.5)}


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[LoraAdapter, ...]:
    """Two that work."""
    files = {name: write_adapter(tmp_path / f"{name}_lora.rkllm") for name in ("poet", "pirate")}
    return (LoraAdapter("poet", files["poet"]), LoraAdapter("pirate", files["pirate"], 0.5))


def say(engine: RkllmEngine, tokens: list[int], adapter: str | None, **sampling: object) -> tuple[list[int], int]:
    """The answer, and how many tokens of its prompt were cached."""
    chosen = Sampling(**{**GREEDY, **sampling})  # type: ignore[arg-type]
    generation = engine.generate(Prompt(tokens, 40, adapter=adapter), chosen)
    said = [piece.token for piece in generation]
    return said, generation.stats.cached_tokens


@pytest.mark.parametrize("keeps", ["yes", "no"])
def test_each_speaks_for_itself(opens: Open, version: str, adapters: tuple[LoraAdapter, ...], keeps: str) -> None:
    """In turns of one conversation on one handle, by the runtime's sampling and by ours: what one has read is never
    another's, whether or not the runtime would mix them up."""
    engine = opens(version, SimulatedModel(switches={"adapter_keeps_cache": keeps}), adapters=adapters)
    tokens = ask(engine, "Tell me of the sea")
    assert len({tuple(LANGUAGE.expected_answer(tokens, 40, voice)) for voice in VOICES.values()}) == 3
    for more in ({}, {"seed": 1}) if engine.loaded.family.CAPABILITIES.logits else ({},):
        conversation: list[int] = []
        for name in (None, "poet", "pirate", None, "pirate", "poet", "poet"):
            conversation += ask(engine, "Tell me of the sea")
            answer = LANGUAGE.expected_answer(conversation, 40, VOICES[name])
            assert say(engine, conversation, name, **more)[0] == answer, name
            conversation += answer


def test_a_conversation_with_one_is_prefilled_once(opens: Open, adapters: tuple[LoraAdapter, ...]) -> None:
    """And is read anew by another."""
    engine = opens("1.3.0", adapters=adapters)
    tokens = ask(engine, "Tell me of the sea")
    assert say(engine, tokens, "poet")[1] == 0
    longer = [*tokens, *say(engine, tokens, "poet")[0], *ask(engine, "More")]
    answer, cached = say(engine, longer, "poet")
    assert answer == LANGUAGE.expected_answer(longer, 40, VOICES["poet"])
    assert cached >= len(tokens)
    assert say(engine, longer, "pirate")[1] == 0


def test_vectors_are_the_models_alone(opens: Open, version: str, adapters: tuple[LoraAdapter, ...]) -> None:
    """Whoever spoke last."""
    engine = opens(version, adapters=adapters, abilities=frozenset({Ability.TEXT, Ability.EMBEDDING}))
    tokens = ask(engine, "Tell me of the sea")
    for _ in range(2):
        assert say(engine, tokens, "poet")[0] == LANGUAGE.expected_answer(tokens, 40, VOICES["poet"])
        vector = engine.embed(tokens).result()
        assert vector is not None
        assert list(vector) == pytest.approx(LANGUAGE.hidden(tokens, SimulatedModel().hidden_size)[-1], abs=1e-6)


def test_one_that_cannot_be_loaded_harms_nobody_else(
    opens: Open, version: str, adapters: tuple[LoraAdapter, ...], tmp_path: Path, runtime_dir: Path
) -> None:
    """Who asks for it is told what the runtime said, and so is the reader of the model's card."""
    broken = tmp_path / "broken_lora.rkllm"
    broken.write_text("nothing of the kind")
    engine = opens(version, adapters=(LoraAdapter("broken", broken), *adapters))
    tokens = ask(engine, "Hello")
    assert say(engine, tokens, None)[0] == expected(tokens)
    assert say(engine, tokens, "poet")[0] == LANGUAGE.expected_answer(tokens, 40, VOICES["poet"])
    with pytest.raises(AdapterMissing, match=r"'broken'.*could not be loaded.*failed to load the lora adapter"):
        say(engine, tokens, "broken")
    with pytest.raises(AdapterMissing, match="no adapter 'bard'"):
        say(engine, tokens, "bard")
    assert say(engine, tokens, None)[0] == expected(tokens)
    notes = describe(engine._model, Setup(runtime_dir, rkllm_library=f"simulator-{version}")).notes
    assert any("adapter broken could not be loaded" in note for note in notes)
