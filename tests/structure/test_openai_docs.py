"""docs/openai.md says of every field what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api.errors import ERRORS, FAILURES
from api.openai.reading_schemas import REFUSED_IN_RERANK, EmbeddingBody, RerankBody, RerankTextsBody
from api.openai.refusals import REFUSED, REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS
from api.openai.schemas import (
    ChatCompletionBody,
    ChatMessage,
    CompletionBody,
    GenerationBody,
)
from api.openai.tokens import DetokenizeBody, TokenizeBody

PAGE = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")


def rows(heading: str) -> set[str]:
    """The names in the first column of the tables under a heading."""
    section = re.split(r"(?m)^#{2,3} ", PAGE.split(f"# {heading}\n", 1)[1])[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {name for first in firsts for name in re.findall(r"`(\w+)`", first)}


@pytest.mark.parametrize(
    ("heading", "shape", "besides"),
    [
        ("Chat completions", ChatCompletionBody, GenerationBody),
        ("Completions", CompletionBody, GenerationBody),
        ("Messages", ChatMessage, None),
        ("Both kinds of completion", GenerationBody, None),
        ("Embeddings", EmbeddingBody, None),
        ("Rerank", RerankBody, None),
    ],
)
def test_every_field_has_its_row(heading: str, shape: type, besides: type | None) -> None:
    """No field is supported without being described, and none is described that is gone."""
    fields = set(shape.model_fields) - set(besides.model_fields if besides else ())  # type: ignore[attr-defined]
    named = rows(heading) - {"model", *REFUSED_IN_RERANK}
    assert named == fields - {"model"}


def test_every_refusal_has_its_row() -> None:
    """Nor is any refused without being listed."""
    assert rows("Refused") == {*REFUSED, *REFUSED_IN_CHAT, *REFUSED_IN_COMPLETIONS}
    assert rows("Rerank") == {*RerankBody.model_fields, *REFUSED_IN_RERANK}
    assert all(f"`{field}`" in PAGE for field in RerankTextsBody.model_fields)


def test_every_field_of_texts_is_named() -> None:
    """In the table of the routes that answer without a model."""
    section = PAGE.split("## Tokens\n", 1)[1].split("\n## ", 1)[0]
    for field in {*TokenizeBody.model_fields, *DetokenizeBody.model_fields}:
        assert f"`{field}`" in section


def test_every_code_has_its_row() -> None:
    """Programs compare codes, so each is written down."""
    for rule in (*FAILURES.values(), *ERRORS.values()):
        assert f"| {rule.status} | " in PAGE
        assert f"`{rule.code}`" in PAGE
