"""What was found is told to people, to programs, and by the exit code; the page says it all once more."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from npu.self_test import SelfTest, Verdict
from ops import environment
from ops.doctor import report
from ops.doctor.facts import Disk, Redis
from ops.doctor.finding import Finding, Level, worst
from ops.program import program
from tasks.settings import ROOT
from tests.ops.doctor.cases import QWEN, on_pc, sound
from tests.stack import free_port

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")


def doctor(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "doctor", *words],
        env=environment.for_child(variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_exit_code(tmp_path: Path) -> None:
    """Only a problem is a failure: a machine without an NPU is none."""
    facts = on_pc(tmp_path, unknown_settings=("x is no setting.",))
    findings = report.examine(facts)
    assert worst(findings) is Level.WARNING and report.exit_code(findings) == 0
    findings = report.examine(replace(facts, disk=Disk(Path("/data"), 0, writable=False)))
    assert report.exit_code(findings) == 1
    assert report.exit_code(()) == 0


def test_what_a_person_reads(tmp_path: Path) -> None:
    """The machine, the gravest first, commands in one piece, the sum."""
    facts = sound(tmp_path)
    facts = replace(facts, redis=Redis("redis://a:********@b/0", "refused"), unknown_settings=("x is no setting.",))
    lines = list(report.to_text(facts, report.examine(facts)))
    assert lines[0] == "Radxa ROCK 5B: rk3588, 8 CPU cores, 16.4 GB of memory"
    assert [line.split()[0] for line in lines if line[:1].islower()][:3] == ["problem", "warning", "ok"]
    assert f"         $ {program()} settings" in lines
    assert lines[-1] == "1 problem, 1 warning."
    assert all(len(line) <= 110 for line in lines if "$" not in line)
    assert list(report.to_text(facts, ()))[-1] == "Everything is as it should be."


def test_a_command_is_never_broken(tmp_path: Path) -> None:
    """It is there to be copied."""
    command = "sudo " + "x" * 200
    facts = on_pc(tmp_path)
    assert f"         $ {command}" in report.to_text(facts, (Finding(Level.NOTE, "code", "Title.", "Why.", command),))


def test_what_a_program_reads(tmp_path: Path) -> None:
    """One object, with all that was seen."""
    facts = sound(tmp_path)
    facts = replace(facts, models=(replace(QWEN, self_test=SelfTest(text=Verdict.SANE, reuse=True)),))
    told = json.loads(json.dumps(report.to_json(facts, report.examine(facts))))
    assert set(told) == {"format", "verdict", "findings", "machine", "library", "models"}
    assert (told["format"], told["verdict"]) == (1, "ok")
    assert told["machine"]["soc"]["name"] == "rk3588"
    assert told["machine"]["npu"]["driver"]["version"] == "0.9.8"
    assert told["library"] == {"path": "/usr/lib/librkllmrt.so", "version": "1.2.3", "why": "", "missing": []}
    (model,) = told["models"]
    assert (model["id"], model["self_test"]["text"], model["self_test"]["reuse"]) == ("qwen3-0.6b", "sane", True)
    assert {*told["findings"][0]} == {"level", "code", "title", "explanation", "command"}
    assert all(f"`{key}`" in PAGE for key in (*told, *told["findings"][0], *told["machine"], *model))


def test_the_command(tmp_path: Path) -> None:
    """On the machine that runs this, whatever it is: the verdict and the exit code agree."""
    words = ("--models-dir", str(tmp_path), "--data-dir", str(tmp_path / "data"))
    done = doctor("--json", *words)
    told = json.loads(done.stdout)
    assert done.returncode == (1 if told["verdict"] == "problem" else 0)
    assert done.stderr == ""
    text = doctor(*words)
    assert text.returncode == done.returncode and "CPU cores" in text.stdout


def test_the_command_with_a_redis_that_is_away(tmp_path: Path) -> None:
    """A problem, told without the password on any way out."""
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    done = doctor("--json", "--models-dir", str(tmp_path), "--data-dir", str(tmp_path), ROCKCHIPLLAMA_REDIS_URL=url)
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert "redis_away" in {finding["code"] for finding in json.loads(done.stdout)["findings"]}


def test_a_chip_can_be_named(tmp_path: Path) -> None:
    """A wrong name is wrong usage."""
    done = doctor("--json", "--soc", "RK3576", "--models-dir", str(tmp_path), "--data-dir", str(tmp_path))
    assert json.loads(done.stdout)["machine"]["soc_source"] == "setting"
    wrong = doctor("--soc", "rk1")
    assert wrong.returncode == 2 and "rk3588" in wrong.stderr and "Traceback" not in wrong.stderr


def codes() -> set[str]:
    """The code of every finding in the source that is not `ok`."""
    found = set()
    for path in (ROOT / "ops/doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                level, code = node.args[0], node.args[1]
                assert isinstance(code, ast.Constant), f"{path}: a finding's code must stand where it is made"
                if not (isinstance(level, ast.Attribute) and level.attr == "OK"):
                    found.add(str(code.value))
    return found


def test_everything_it_can_say_is_on_the_page() -> None:
    """In one row each, and nothing else is."""
    rows = re.findall(r"^\| `(\w+)` \| (?:note|warning|problem)", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(codes())
