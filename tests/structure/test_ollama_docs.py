"""docs/ollama.md says of every field what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api.ollama.model_routes import OLLAMA_VERSION
from api.ollama.options import OllamaOptions
from api.ollama.schemas import (
    ChatBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    GenerationBody,
    OllamaMessage,
    ShowBody,
)
from api.ollama.shelf_schemas import REFUSED, CopyBody, CreateBody, DeleteBody, PullBody

PAGE = (Path(__file__).parents[2] / "docs" / "ollama.md").read_text(encoding="utf-8")


def tables(heading: str) -> list[set[str]]:
    """The names in the first column of each table under a heading."""
    section = re.split(r"(?m)^#{2,3} ", PAGE.split(f"# {heading}\n", 1)[1])[0]
    found = re.findall(r"(?m)(?:^\|.*\n)+", section)
    return [set(re.findall(r"(?m)^\| `(\w+)` \|", table)) for table in found]


@pytest.mark.parametrize(
    ("heading", "shapes", "besides"),
    [
        ("Both kinds of generation", (GenerationBody,), None),
        ("Chat", (ChatBody,), GenerationBody),
        ("Messages", (OllamaMessage,), None),
        ("Generate", (GenerateBody,), GenerationBody),
        ("Options", (OllamaOptions,), None),
        ("Embed", (EmbedBody, EmbeddingsBody), None),
        ("Show", (ShowBody,), None),
        ("Pull, create, copy, delete", (PullBody, CreateBody, CopyBody, DeleteBody), None),
    ],
)
def test_every_field_has_its_row(heading: str, shapes: tuple[type, ...], besides: type | None) -> None:
    """No field is supported without being described, and none is described that is gone."""
    known = set(besides.model_fields) if besides else set()  # type: ignore[attr-defined]
    fields = [
        {field.alias or name for name, field in shape.model_fields.items() if name not in known}  # type: ignore[attr-defined]
        | (set(REFUSED) if shape is CreateBody else set())
        for shape in shapes
    ]
    assert tables(heading) == fields


def test_the_version_is_the_one_that_is_told() -> None:
    """Clients go by it."""
    assert f"`{OLLAMA_VERSION}`" in PAGE
