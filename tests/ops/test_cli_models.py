"""`rockchipllama models pull`, `recommend`, `list` and `rm`, as people and programs run them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ops import environment
from ops.cli import models
from ops.pull_progress import show
from tasks.commands import PullProgress, PullStep
from tasks.errors import CommandFailed
from tests.fakes.hub import Fault, Hub, Repo
from tests.ops.terminal import seen

REPO = "people/Tiny-1B-GGUF"
WEIGHTS = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(100_000)


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    made.repos[REPO] = Repo({"Tiny-1B-Q4_K_M.gguf": WEIGHTS})
    with made.serving():
        yield made


def run(hub: Hub, models: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **variables}
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "models", *words, "--models-dir", str(models)],
        env=environment.for_child(variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_model_comes_and_goes(hub: Hub, tmp_path: Path) -> None:
    """Pulled with lines where there is no terminal, listed with its names, removed with all its files."""
    hub.faults = [Fault(cut=50_000)]
    pulled = run(hub, tmp_path, "pull", REPO)
    assert (pulled.returncode, pulled.stderr.splitlines()[-1]) == (0, "  Tiny-1B-Q4_K_M.gguf: 0 of 0 MB"), pulled.stderr
    assert pulled.stdout.splitlines()[-1] == "Ready: tiny-1b"
    assert "Tiny-1B-Q4_K_M.gguf (0 MB) of people/Tiny-1B-GGUF, for the CPU." in pulled.stdout
    (tmp_path / "tiny-1b" / "Tiny-1B-Q4_K_M.gguf").write_bytes(WEIGHTS[:20])
    listed = run(hub, tmp_path, "list")
    assert listed.stdout.startswith("tiny-1b  unusable") and f"hf.co/{REPO}" in listed.stdout
    (row,) = json.loads(run(hub, tmp_path, "list", "--json").stdout)
    assert row["source"]["repository"] == REPO
    removed = run(hub, tmp_path, "rm", "tiny:1b")
    assert removed.stdout.startswith("Removed tiny-1b")
    assert [path.name for path in tmp_path.iterdir()] == [".partial"]
    again = run(hub, tmp_path, "rm", "tiny:1b")
    assert again.returncode == 1 and "has no model 'tiny:1b'" in again.stderr


def test_models_are_recommended(hub: Hub, tmp_path: Path) -> None:
    """For this machine, or for a board that is somewhere else."""
    told = run(hub, tmp_path, "recommend", "--soc", "rk3588", "--memory", "2")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("For the rk3588, runtime ")
    assert "qwen3:0.6b    NPU" in told.stdout and "qwen3:8b cannot run here" in told.stdout
    rows = json.loads(run(hub, tmp_path, "recommend", "--soc", "rk3588", "--memory", "2", "--json").stdout)
    assert {row["name"] for row in rows if not row["runs"]} >= {"qwen3:8b", "qwen3:4b"}
    assert run(hub, tmp_path, "recommend", "--soc", "rk9999").returncode == 2
    assert hub.asked == []


def test_a_terminal_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file, how much of it is there, and of how much."""
    told = partial(PullProgress, pull="p", model="m", step=PullStep.FETCHING, file="weights.gguf", total=10_000_000)
    steps = [told(number=1, completed=0), told(number=2, completed=5_000_000)]
    shown = seen(monkeypatch, lambda: show(steps, as_json=False))
    assert "\x1b[" in shown and "weights.gguf" in shown and "5.0/10.0 MB" in shown
    narrow = seen(monkeypatch, lambda: show(steps, as_json=False), columns=40)
    assert "weights.gguf" in narrow and "5.0/10.0 MB" in narrow and "━" not in narrow


def test_a_program_reads_each_step(hub: Hub, tmp_path: Path) -> None:
    """A line of JSON each, the last of which says how it ended."""
    steps = [json.loads(line) for line in run(hub, tmp_path, "pull", REPO, "--json").stdout.splitlines()]
    assert [steps[0]["step"], steps[-1]["step"], steps[-1]["id"]] == ["choosing", "done", "tiny-1b"]
    assert max(step["completed"] for step in steps if step["step"] == "fetching") == len(WEIGHTS)


def test_a_refusal_is_one_line_and_tells_no_secret(hub: Hub, tmp_path: Path) -> None:
    """With exit code 1; the token is nowhere."""
    hub.repos[REPO].gated = True
    refused = run(hub, tmp_path, "pull", REPO, HF_TOKEN="hf_verysecret")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"rockchipllama: {hub.url}/{REPO} is gated")
    assert len(refused.stderr.splitlines()) == 1
    assert "verysecret" not in refused.stdout + refused.stderr
    assert run(hub, tmp_path, "pull", REPO, HF_TOKEN="yes").returncode == 0


def test_another_chip_is_fetched_for_when_asked(hub: Hub, tmp_path: Path) -> None:
    """For a stick to carry to a board; a chip that does not exist is told as wrong usage."""
    hub.repos["maker/X-1B"] = Repo({"X-1B-w8a8-rk3576.rkllm": b"x", "X-1B-w8a8-rk3588.rkllm": b"x"})
    refused = run(hub, tmp_path, "pull", "maker/X-1B")
    assert refused.returncode == 1 and "no NPU we know" in refused.stderr
    assert run(hub, tmp_path, "pull", "maker/X-1B", "--soc", "rk3576").returncode == 0
    assert (tmp_path / "x-1b" / "X-1B-w8a8-rk3576.rkllm").is_file()
    assert run(hub, tmp_path, "pull", "maker/X-1B", "--soc", "rk1").returncode == 2


def test_the_disk_is_told_to_the_byte(hub: Hub, tmp_path: Path) -> None:
    """What each takes, and all together."""
    assert run(hub, tmp_path, "pull", REPO).returncode == 0
    found = json.loads(run(hub, tmp_path, "du", "--json").stdout)
    assert found["models"]["tiny-1b"] == found["bytes"] == len(WEIGHTS) and found["free"] > 0
    assert "in all" in run(hub, tmp_path, "du").stdout


def test_a_folder_that_is_not_there_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever mistyped it is not told that all is well."""
    monkeypatch.setenv("ROCKCHIPLLAMA_MODELS_DIR", str(tmp_path / "none"))
    for command in (models.list_models, models.du, models.prune):
        with pytest.raises(CommandFailed, match="is not there"):
            command()


def test_a_model_made_from_another_has_no_size_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list adds up to what the disk holds, says what it was made from, and once what is wrong with the file of both."""
    for name, text in (("tiny", 'id = "tiny"\nengine = "llamacpp"\nfile = "w.gguf"'), ("terse", 'base = "tiny"')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.toml").write_text(text + "\n")
    (tmp_path / "tiny" / "w.gguf").write_bytes(b"x" * 2_000_000)
    monkeypatch.setenv("ROCKCHIPLLAMA_MODELS_DIR", str(tmp_path))
    models.list_models()
    said = capsys.readouterr()
    terse, tiny = said.out.splitlines()
    assert said.err.count("w.gguf") == 1
    assert tiny.split()[:2] == ["tiny", "unusable"] and "llamacpp" not in said.out
    assert "2 MB" in tiny and "MB" not in terse and "made from tiny" in terse
    models.list_models(as_json=True)
    assert [row["bytes"] for row in json.loads(capsys.readouterr().out)] == [0, 2_000_000]
