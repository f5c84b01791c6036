"""`rockchipllama bench load` and `bench fleet`, as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops import environment
from ops.bench.trace import read
from tests.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A fast echo, whose answers are its prompts; one token of it is a byte."""
    with Stack({"echo": {"tokens_per_second": 5000}}, default_model="echo") as stack:
        yield stack


def bench(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command, which must end with this code, and say nothing that only a terminal understands."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "bench", *map(str, words)],
        env=environment.for_child({}),
        capture_output=True,
        check=False,
        timeout=100,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert "\x1b" not in done.stderr + done.stdout and "Traceback" not in done.stderr
    return done


def test_a_load_is_measured_and_becomes_a_trace(stack: Stack, tmp_path: Path) -> None:
    """A conversation of two turns, and another user; the trace that is written has the lengths they had."""
    lines = [
        {"at": 0, "user": "a", "conversation": "c", "prompt_tokens": 200, "answer_tokens": 40},
        {"at": 0, "user": "a", "conversation": "c", "prompt_tokens": 200, "answer_tokens": 40},
        {"at": 0.1, "user": "b", "prompt_tokens": 300, "answer_tokens": 60, "lane": "background"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = bench(
        *("load", "--trace", tmp_path / "t.jsonl", "--url", stack.url),
        *("--json", tmp_path / "f.json", "--save-trace", tmp_path / "real.jsonl"),
    )
    assert "3, answered 3" in said.stdout and "interactive: first token" in said.stdout
    found = json.loads((tmp_path / "f.json").read_text())
    assert (found["schema"], found["command"], found["answered"], found["tokens"]) == (1, "bench load", 3, 140)
    assert found["lanes"]["interactive"]["answered"] == 2 and found["lanes"]["background"]["answered"] == 1
    real = read(tmp_path / "real.jsonl")
    assert [(each.user, each.answer_tokens) for each in real] == [("a", 40), ("a", 40), ("b", 60)]
    assert all(abs(each.prompt_tokens - wanted) < 50 for each, wanted in zip(real, (200, 200, 300), strict=True))


def test_a_load_that_is_not_answered_says_why(stack: Stack, tmp_path: Path) -> None:
    """Each refusal by its reason, and the command ends with 1; a service that is not there is one sentence."""
    (tmp_path / "t.jsonl").write_text('{"at": 0, "prompt_tokens": 999999, "answer_tokens": 5}\n')
    said = bench("load", "--trace", tmp_path / "t.jsonl", "--url", stack.url, code=1)
    assert "answered 0; 1 HTTP 4" in said.stdout
    away = bench("load", "--trace", tmp_path / "t.jsonl", "--url", "http://127.0.0.1:9", code=1)
    assert "does not answer" in away.stderr
    unknown = bench("load", "--trace", tmp_path / "t.jsonl", "--url", stack.url, "--model", "nobody", code=1)
    assert "refuses a question (404)" in unknown.stderr


def test_fleets_are_compared(tmp_path: Path) -> None:
    """Each number of boards by itself, in the figures as well."""
    said = bench(
        "fleet",
        "--boards",
        "1,3",
        "--load",
        "home-assistant",
        "--users",
        "4",
        "--hours",
        "0.1",
        "--json",
        tmp_path / "f",
    )
    assert said.stdout.startswith("1 board\n") and "\n3 boards\n" in said.stdout
    found = json.loads((tmp_path / "f").read_text())
    assert [len(each["boards"]) for each in found["fleets"]] == [1, 3]
    assert found["traffic"] == {"trace": "home-assistant", "users": 4, "minutes": 6.0, "seed": 1}
    assert "each from 1 to 1000" in bench("fleet", "--boards", "many", code=2).stderr
    assert "no profile" in bench("fleet", "--profile", "fast", code=1).stderr
    assert "cannot be read" in bench("fleet", "--load", tmp_path / "none", code=1).stderr
