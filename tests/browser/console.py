"""The console in a real browser. `tests/e2e/test_console.py` runs this with Playwright installed beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

URL = os.environ["SERVICE"]
CHROMIUM = os.environ["CHROMIUM"]
API_PID = int(os.environ["API_PID"])
SHOTS = Path(os.environ["SHOTS"])
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
LIMIT = 60_000


def call(path: str, body: object = None, method: str | None = None, key: str = "") -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    with urlopen(Request(f"{URL}/{path}", data, headers, method=method), timeout=60) as reply:
        found: dict[str, object] = json.load(reply)
        return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new tab in which nothing may go wrong unseen."""
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    made = context.new_page()
    made.set_default_timeout(LIMIT)
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    made.on("dialog", lambda dialog: wrong.append(dialog.message))
    made.on("request", lambda request: None if request.url.startswith(URL) else wrong.append(request.url))
    made.goto(URL)
    expect(made.locator("#model option")).not_to_have_count(0, timeout=LIMIT)
    yield made
    context.close()
    # A browser says of each refused request that it was; the page says so itself where that matters.
    assert not [each for each in wrong if "Failed to load resource" not in each]


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def answer(page: Page) -> str:
    """The last answer, once it is whole."""
    expect(page.locator("#send")).to_be_visible(timeout=LIMIT)
    return page.locator(".turn.assistant").last.locator("div").last.inner_text()


def test_a_conversation(page: Page) -> None:
    """Streamed, with what it cost below it, kept over a reload, and begun anew."""
    say(page, "hello console")
    assert "hello console" in answer(page)
    assert re.search(r"\d+ \+ \d+ tokens · first after", page.locator(".facts").last.inner_text())
    page.reload()
    expect(page.locator(".turn")).to_have_count(2, timeout=LIMIT)
    say(page, "and again")
    assert "and again" in answer(page)
    page.click("#new-chat")
    expect(page.locator(".turn")).to_have_count(0)
    say(page, "word " * 400)
    expect(page.locator(".turn.assistant.busy div")).to_contain_text("word word", timeout=LIMIT)
    page.click("#new-chat")
    expect(page.locator("#send")).to_be_visible(timeout=LIMIT)
    assert page.evaluate("sessionStorage.getItem('rockchipllama.talk')") == "[]"


def test_what_a_model_says_is_never_markup(page: Page) -> None:
    """Not as HTML, and not through Markdown; what of the latter is known becomes elements."""
    evil = '<img src=x onerror="alert(1)"><script>alert(2)</script> [click](javascript:alert(3)) **bold**\n```\n<b>code</b>\n```'
    page.fill("#text", evil)
    page.click("#send")
    assert "<script>alert(2)</script>" in answer(page)
    last = page.locator(".turn.assistant").last
    assert last.locator("img, script, a, b").count() == 0
    assert last.locator("strong").inner_text() == "bold"
    assert "<b>code</b>" in last.locator("pre code").inner_text()


@pytest.mark.parametrize("how", ["the button", "the Escape key"])
def test_an_answer_is_stopped(page: Page, how: str) -> None:
    """The job ends as well, and what was said stays. Screen readers hear an answer once it has ended, and not while it grows."""
    say(page, "word " * 400)
    expect(page.locator(".turn.assistant.busy div")).to_contain_text("word word", timeout=LIMIT)
    assert page.locator("#talk[role=log] .turn[aria-busy=true]").count() == 1
    if how == "the button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    said = answer(page)
    assert 0 < said.count("word") < 400
    assert page.locator(".facts").last.inner_text() == "Stopped."
    assert page.locator("[aria-busy]").count() == 0
    end = time.monotonic() + 30
    while call("v1/jobs?state=active")["data"]:
        assert time.monotonic() < end, "the job went on"


def test_an_answer_is_stopped_before_its_job_has_a_name(page: Page) -> None:
    """Its head is on the way: the reader is free at once, and the job ends when it has come, not when its grace is over."""
    page.evaluate(
        """() => {
          const real = window.fetch;
          window.fetch = async (where, how) => {
            const reply = await real(where, how);
            if (String(where).endsWith("chat/completions")) await new Promise((go) => (window.arrives = go));
            how?.signal?.throwIfAborted();
            return reply;
          };
        }"""
    )
    say(page, "word " * 700)
    page.wait_for_function("() => window.arrives")
    page.click("#stop")
    assert answer(page) == ""
    page.evaluate("() => window.arrives()")
    end = time.monotonic() + 20
    while call("v1/jobs?state=active")["data"]:
        assert time.monotonic() < end, "the job went on"


def test_an_answer_goes_on_when_its_server_was_killed(page: Page) -> None:
    """On another connection, to the API process that is started in its place; no word twice, none lost."""
    text = "-".join(f"word{number}" for number in range(200))
    say(page, text)
    expect(page.locator(".turn.assistant.busy div")).to_contain_text("word3-", timeout=LIMIT)
    os.kill(API_PID, signal.SIGKILL)
    assert answer(page).removesuffix("\n") == text
    assert page.locator(".turn .bad").count() == 0


def test_the_views(page: Page) -> None:
    """Each shows what there is, by keyboard too, and says so where there is nothing."""
    for view, words in {
        "live": "Nothing runs or waits.",
        "batches": "There are no batches",
        "failures": "No job has failed lately.",
        "keys": "There are no keys",
        "connect": f"curl {URL}/v1/chat/completions",
    }.items():
        link = page.locator(f"nav a[href='#{view}']")
        link.focus()
        page.keyboard.press("Enter")
        expect(page.locator(f"section#{view}")).to_contain_text(words, timeout=LIMIT)
        assert link.get_attribute("aria-current") == "page"
    page.click("nav a[href='#live']")
    expect(page.locator("#boards")).to_contain_text("echo (", timeout=LIMIT)
    unnamed = page.locator("button:visible, input:visible, select:visible, textarea:visible").evaluate_all(
        "all => all.filter(each => !(each.labels?.length || each.ariaLabel || each.textContent.trim())).map(each => each.id)"
    )
    assert unnamed == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1100, 760), (360, 740)])
def test_it_fits(browser: Browser, theme: str, width: int, height: int) -> None:
    """In both themes nothing is wider than the window, but what scrolls by itself; text can be told from its ground."""
    context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(URL)
    expect(page.locator("#model option")).not_to_have_count(0, timeout=LIMIT)
    say(page, "# Heading\n\nSome *text* with `code`.\n\n```\n" + "a long line of code " * 12 + "\n```")
    answer(page)
    for view in ("chat", "live", "keys", "connect"):
        page.click(f"nav a[href='#{view}']")
        expect(page.locator(f"section#{view}")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SHOTS / f"{view}-{theme}-{width}.png")
    shades = page.evaluate(
        """() => {
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            const style = getComputedStyle(document.body);
            return [style.color, style.backgroundColor].map(color => {
                context.fillStyle = color;
                context.fillRect(0, 0, 1, 1);
                const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            });
        }"""
    )
    assert abs(shades[0] - shades[1]) > 150
    assert (shades[1] > 128) == (theme == "light")
    context.close()


def test_keys(page: Page) -> None:
    """Made and revoked here; from the first one on, the page shows one, and asks for it where it has none."""
    page.click("nav a[href='#keys']")
    page.fill("#key-name", "console")
    page.check("[value=admin]")
    page.click("#make-key button")
    key = page.locator("#made-key code").inner_text(timeout=LIMIT)
    expect(page.locator("#key-rows")).to_contain_text("console", timeout=LIMIT)
    other = page.context.browser.new_context().new_page()  # type: ignore[union-attr]
    other.goto(URL)
    expect(other.locator("#key-dialog")).to_be_visible(timeout=LIMIT)
    other.fill("#key", "wrong")
    other.click("#use-key")
    expect(other.locator("#key-dialog")).to_be_visible(timeout=LIMIT)
    expect(other.locator("#notice")).to_contain_text("does not know the API key", timeout=LIMIT)
    other.fill("#key", key)
    other.click("#use-key")
    expect(other.locator("#model option")).not_to_have_count(0, timeout=LIMIT)
    say(other, "hello with a key")
    assert "hello with a key" in answer(other)
    other.close()
    page.locator("#key-rows button").click()
    page.locator("#key-rows button").click()
    expect(page.locator("#key-rows")).to_contain_text("There are no keys", timeout=LIMIT)
