"""What a board or worker says of a model."""

from __future__ import annotations

from pathlib import Path

from npu.engines import Setup
from npu.model import Model
from tasks.prompting.cards import card_of


def test_a_note_is_told_once(tmp_path: Path) -> None:
    """The manifest's own, and the engine's beside it."""
    model = Model(id="echo", engine="echo", folder=tmp_path, notes=("Be kind to it.",))
    notes = card_of(model, "one", Setup(tmp_path)).notes
    assert notes.count("Be kind to it.") == 1
    assert len(notes) == len(set(notes)) > 1
