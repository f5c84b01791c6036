"""What the pages say of the code is so, as far as a test can tell."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from api.errors import FAILURES
from api.jobs import SHOWN
from ops.configuration import declared
from tasks.events import FailureCode
from tasks.jobs import JobState, Phase
from tasks.settings import PREFIX, ROOT
from tests.docs.pages import PAGES, blocks, commands

JOBS = (ROOT / "docs/jobs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", FailureCode)
def test_every_way_to_fail_has_a_row(code: FailureCode) -> None:
    """With the status and the word that clients of the API get, and advice."""
    rows = re.findall(rf"^\| `{code}` \| (.+) \|$", JOBS, re.MULTILINE)
    assert len(rows) == 1
    status, word, what, advice = rows[0].split(" | ")
    assert (status, word) == (str(FAILURES[code].status), f"`{FAILURES[code].code}`")
    assert what and advice


def test_every_state_phase_and_field_of_a_job_is_explained() -> None:
    """In the first cell of a row."""
    cells = re.findall(r"^\| ([^|]+) \|", JOBS, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {*JobState, *Phase, *SHOWN} <= named


def test_every_decision_is_in_the_index() -> None:
    """In order."""
    listed = re.findall(r"\((decisions/[^)]+)\)", (ROOT / "docs/index.md").read_text(encoding="utf-8"))
    there = sorted(f"decisions/{page.name}" for page in (ROOT / "docs/decisions").glob("*.md"))
    assert listed == there


def test_every_page_is_in_the_index() -> None:
    """Nobody finds a page that nothing links to."""
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index


def test_every_page_is_in_the_sites_navigation() -> None:
    """Once; and the decisions in order."""
    listed = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    there = [page.relative_to(ROOT / "docs").as_posix() for page in sorted((ROOT / "docs").rglob("*.md"))]
    assert sorted(listed) == sorted(there)
    decisions = [page for page in listed if page.startswith("decisions/")]
    assert decisions == sorted(decisions)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_pasted(page: Path) -> None:
    """The command lies in `.venv`, and is on nobody's path."""
    typed = [command for block in blocks(page, "console") for command in commands(block)]
    assert not [command for command in typed if re.search(r"(?<![\w./-])rockchipllama (?!&&)", command)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_a_page_names_are_there(page: Path) -> None:
    """Those in our own folders; a path ending in a slash is a folder."""
    for named in re.findall(r"`((?:api|docs|npu|ops|tasks|tests)/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_a_page_names_are_settings(page: Path) -> None:
    """`ROCKCHIPLLAMA_CONFIG` names the file, so it cannot stand in it; two more belong to containers only."""
    known = {f"{PREFIX}{setting.name.upper()}" for setting in declared()}
    known |= {f"{PREFIX}{name}" for name in ("CONFIG", "PUBLISH", "MODELS")}
    for named in re.findall(rf"{PREFIX}[A-Z_]+[A-Z]", page.read_text(encoding="utf-8")):
        assert named in known, named


def test_the_changelog_says_nothing_twice() -> None:
    """An entry that was rewritten while others were landed easily stands there in both forms."""
    entries = re.findall(r"^- (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    begins = Counter(" ".join(entry.split()[:4]) for entry in entries)
    assert [begin for begin, count in begins.items() if count > 1] == []
