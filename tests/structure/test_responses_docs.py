"""docs/responses.md says of every field what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path

from api.openai.responses.schemas import NEEDED, REFUSED_IN_RESPONSES, ResponseBody

PAGE = (Path(__file__).parents[2] / "docs" / "responses.md").read_text(encoding="utf-8")


def rows(heading: str) -> set[str]:
    """The names in the first column of the tables under a heading."""
    section = re.split(r"(?m)^#{2,3} ", PAGE.split(f"# {heading}\n", 1)[1])[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {name for first in firsts for name in re.findall(r"`(\w+)`", first)}


def test_every_field_has_its_row() -> None:
    """None is supported without being described, and none is described that is gone."""
    assert rows("The body") == set(ResponseBody.model_fields)


def test_every_refusal_has_its_row() -> None:
    """Nor is any refused without being listed."""
    assert rows("Refused") == set(REFUSED_IN_RESPONSES)


def test_every_type_of_item_has_its_row() -> None:
    """With the fields it needs."""
    assert rows("Items") == set(NEEDED)
    for kind, fields in NEEDED.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |"))
        assert all(f"`{field}`" in row for field in fields)
