"""What a board or worker says of a model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import msgspec

from npu.engines import LastLoad, Setup
from npu.engines.rkllm.engine import RkllmEngine
from npu.manifest import read_manifest
from npu.model import Model
from npu.self_test import SelfTest
from npu.simulator import SimulatedModel, write_model
from tasks import card as cards
from tasks.prompting.cards import card_of


def test_a_note_is_told_once(tmp_path: Path) -> None:
    """The manifest's own, and the engine's beside it."""
    model = Model(id="echo", engine="echo", folder=tmp_path, notes=("Be kind to it.",))
    notes = card_of(model, "one", Setup(tmp_path)).notes
    assert notes.count("Be kind to it.") == 1
    assert len(notes) == len(set(notes)) > 1


def test_what_a_load_showed_is_told_in_fields(tmp_path: Path) -> None:
    """For programs; and unchanged once it went through Redis. Before the first load there is nothing."""
    write_model(tmp_path / "models", SimulatedModel(toolkit="1.2.2", garbage=True, wrong_logits=True))
    model, setup = read_manifest(tmp_path / "models/manifest.toml"), Setup(tmp_path, rkllm_library="simulator-1.3.0")
    before = card_of(model, "one", setup)
    assert (before.last_load, before.self_test) == (None, None)
    RkllmEngine.open(model, setup).close()
    card = msgspec.json.decode(msgspec.json.encode(card_of(model, "one", setup)), type=cards.Card)
    load, test = card.last_load, card.self_test
    assert load is not None and test is not None
    assert (load.runtime, load.driver, load.platform) == ("1.3.0", "0.9.8", "rk3588")
    assert (load.toolkit, load.max_context, load.npu_cores, load.dtype) == ("1.2.2", 4096, 3, "w8a8")
    assert (test.text, test.logits, test.reuse) == ("suspect", "suspect", True)
    assert test.said and test.abort_ms is not None


def test_the_card_has_every_field_of_the_engines_facts() -> None:
    """Two vocabularies say the same here; neither may lose a word."""
    assert {field.name for field in fields(LastLoad)} == set(cards.LastLoad.__struct_fields__)
    assert {field.name for field in fields(SelfTest)} == set(cards.SelfTest.__struct_fields__)
