"""The pages that are written by the code are those the code writes now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from ops.cli.main import app
from ops.configuration import declared
from ops.docs import pages
from tasks.settings import ROOT


@pytest.mark.parametrize(("name", "text"), list(pages()), ids=[name for name, _ in pages()])
def test_a_page_is_fresh(name: str, text: str) -> None:
    """`python -m ops.docs` writes them anew."""
    assert (ROOT / name).read_text(encoding="utf-8") == text


def commands(path: str, command: Any) -> Iterator[str]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(f"{path} {name}", child)


def test_every_command_is_documented() -> None:
    """With a heading of its own, and nothing else has one."""
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(commands("rockchipllama", get_command(app)))


def test_every_setting_is_documented() -> None:
    """In one row."""
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [setting.name for setting in declared()]


def test_every_row_belongs_to_a_table() -> None:
    """A blank line ends a table; rows behind it would be shown as text."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(r"\A.*\n\|[-:| ]+\|\n", table), (
                f"{page.relative_to(ROOT)} has rows without a head: {table}"
            )


def test_links_between_pages_lead_somewhere() -> None:
    """Relative ones; the rest of the world is not ours to check."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
