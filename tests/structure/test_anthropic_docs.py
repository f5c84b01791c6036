"""docs/anthropic.md says of every field what becomes of it."""

from __future__ import annotations

import re

import pytest

from api.anthropic.problems import KINDS, STATUSES, kind
from api.anthropic.refusals import REFUSED
from api.anthropic.schemas import NEEDS, CountBody, MessagesBody, ToolBody, TurnBody
from api.errors import ERRORS, FAILURES
from tasks.settings import ROOT

PAGE = (ROOT / "docs/anthropic.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[str]:
    """The first cells of the tables under a heading."""
    section = re.split(r"(?m)^#{2,3} ", PAGE.split(f"# {heading}\n", 1)[1])[0]
    return [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]


def names(heading: str) -> set[str]:
    return {name for first in rows(heading) for name in re.findall(r"`(\w+)`", first)}


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Messages", MessagesBody.model_fields),
        ("Turns", [*TurnBody.model_fields, *NEEDS]),
        ("Tools", ToolBody.model_fields),
        ("Refused", REFUSED),
    ],
)
def test_every_field_has_its_row(heading: str, fields: list[str]) -> None:
    """No field or kind of block is taken or refused without being described, and none is described that is gone."""
    assert names(heading) == set(fields)


def test_what_is_counted_is_named() -> None:
    """Beside the route that counts."""
    section = PAGE.split("## Counting tokens\n", 1)[1].split("\n#", 1)[0]
    assert {*re.findall(r"`(\w+)`", section)} == set(CountBody.model_fields)


def test_every_status_and_type_has_its_row() -> None:
    """With the statuses that this dialect has for itself."""
    table = PAGE.split("## Errors\n", 1)[1]
    for status in {rule.status for rule in (*FAILURES.values(), *ERRORS.values())} | set(KINDS):
        assert str(STATUSES.get(status, status)) in table
        assert f"`{kind(status)}`" in table
