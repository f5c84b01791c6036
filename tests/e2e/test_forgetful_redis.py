"""The whole service on a Redis that is killed and comes back without its last moment."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.test_cancellation import body
from tests.e2e.test_crash import chat
from tests.stack import LIMIT, Stack


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack({"steady": {"tokens_per_second": 100}}) as stack:
        yield stack


def texts(lines: Iterator[str]) -> Iterator[str]:
    """What each chunk of a stream adds to the answer; an error as its message, in brackets."""
    for line in lines:
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                yield f"[{chunk['error']['message']}]"
            for choice in chunk.get("choices", ()):
                yield choice["delta"].get("content") or ""


def read(parts: Iterator[str], length: int) -> str:
    """So many characters of an answer, or a few more."""
    text = ""
    while len(text) < length:
        text += next(parts)
    return text


def test_an_answer_goes_on_over_a_moment_that_was_forgotten(stack: Stack) -> None:
    """Its client has seen what Redis forgot; it gets the rest, and nothing twice."""
    asked = "".join(f"{number:04d} " for number in range(120))
    with httpx.stream(
        "POST", f"{stack.url}/v1/chat/completions", content=body("steady", asked.strip()), timeout=LIMIT
    ) as reply:
        parts = texts(reply.iter_lines())
        text = read(parts, 20)
        moment = stack.moment()
        text += read(parts, 20)
        stack.forget_since(moment)
        text += "".join(parts)
    assert text == asked.strip()


def test_who_comes_back_to_an_answer_that_was_made_anew_is_told_so(stack: Stack) -> None:
    """Its worker died with what Redis forgot: not a word of the new answer is put behind what was read, and whoever begins
    anew reads all of it."""
    asked = "".join(f"{number:04d} " for number in range(60)).strip()
    headers = {"x-stream-grace": "60s"}
    with httpx.stream(
        "POST", f"{stack.url}/v1/chat/completions", content=body("steady", asked), headers=headers, timeout=LIMIT
    ) as reply:
        job = reply.headers["x-job-id"]
        lines = reply.iter_lines()
        read(texts(lines), 20)
        moment = stack.moment()
        read(texts(lines), 20)
        last = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
        child = stack.child("steady")
        stack.process("valkey").kill()  # first, for it would hear of another worker that goes on
        child.kill()
        child.wait(LIMIT)
    stack.forget_since(moment)
    events = f"{stack.url}/v1/jobs/{job}/events"
    with httpx.stream("GET", events, headers={"last-event-id": last}, timeout=LIMIT) as reply:
        text = "".join(texts(reply.iter_lines()))
    assert text.startswith("[") and "came back without its last moments" in text
    with httpx.stream("GET", events, timeout=LIMIT) as reply:
        assert "".join(texts(reply.iter_lines())) == asked


def test_a_forgotten_job_ends_with_words(stack: Stack) -> None:
    """Even its acceptance is lost: its client is told to ask again, and whoever does is answered, though no
    worker and no board has breathed yet since Redis came back."""
    moment = stack.moment()
    with httpx.stream(
        "POST", f"{stack.url}/v1/chat/completions", content=body("steady", "x" * 4000), timeout=LIMIT
    ) as reply:
        parts = texts(reply.iter_lines())
        text = read(parts, 50)
        stack.forget_since(moment)
        text += "".join(parts)
    answer, _, error = text.partition("[")
    assert set(answer) == {"x"} and "came back without its last moments" in error
    assert chat(stack, "steady", "again") == "again"
