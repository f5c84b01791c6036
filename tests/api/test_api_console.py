"""The console's page and files as they are sent; `tests/e2e/test_console.py` uses them in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api import console_page
from tasks.api_keys import Scope
from tests.api.site import Site

FOLDER = Path(console_page.__file__).parent / "console"
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGE = (FOLDER / "index.html").read_text()
SCRIPTS = {path.name: path.read_text() for path in FOLDER.glob("*.js")}


def test_browsers_get_the_page(place: Site) -> None:
    """Others get what they look for at the same place, so caches tell them apart."""
    page = place.http.get("/", headers=BROWSER)
    assert (page.status_code, page.text) == (200, PAGE)
    assert page.headers["content-type"].startswith("text/html") and "accept" in page.headers["vary"].lower()
    assert place.http.get("/").text == "Ollama is running"


def test_the_page_may_load_its_own_files_and_nothing_else(place: Site) -> None:
    """What slipped into it could neither run nor send anything elsewhere."""
    policy = place.http.get("/", headers=BROWSER).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", PAGE)
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", PAGE)
    for name, script in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script), (
            name
        )


def test_all_it_needs_is_there(place: Site) -> None:
    """Each file with its type, to anybody, and sent once; a module or an element that is missing would only be seen in use."""
    place.world.api_keys.make("a-key", Scope.INFERENCE)
    named = {*re.findall(r'"console/([\w.]+)"', PAGE)}
    for script in SCRIPTS.values():
        named.update(re.findall(r'from "\./([\w.]+)"', script))
        assert set(re.findall(r'\bat\("([\w-]+)"\)', script)) <= set(re.findall(r'\bid="([\w-]+)"', PAGE))
    assert named == {path.name for path in FOLDER.iterdir()} - {"index.html"}
    for name in named:
        reply = place.http.get(f"/console/{name}")
        assert reply.content == (FOLDER / name).read_bytes()
        again = place.http.get(f"/console/{name}", headers={"if-none-match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["index.html", "nothing.js", "..%2fauth.py", "%2e%2e/auth.py"])
def test_nothing_else_is_sent(place: Site, name: str) -> None:
    """Names are looked up, never opened."""
    place.world.api_keys.make("a-key", Scope.INFERENCE)
    assert place.http.get(f"/console/{name}").status_code in (401, 404)
