"""The documentation as a site, with its generator installed for this test alone."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tasks.settings import ROOT
from tests.installed import install


@pytest.fixture(scope="module")
def mkdocs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator. At home it is done without when it cannot be fetched."""
    return install("requirements-docs.lock", tmp_path_factory.mktemp("mkdocs")) / "mkdocs"


@pytest.mark.full
def test_the_site(mkdocs: Path, tmp_path: Path) -> None:
    """Builds without a warning, finds each page by its words, and loads nothing from elsewhere."""
    site = tmp_path / "site"
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", site], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    assert {entry["location"].split("#")[0].rstrip("/") or "index" for entry in found} == pages
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", page.read_text()
        )
        assert not loaded, page.relative_to(site)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.relative_to(site)
