"""What a user gets from a fresh copy: ops/setup in a folder of its own, with the service's own packages only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.settings import ROOT

ENTRIES = (
    "api.server",
    "tasks.worker.entry",
    "tasks.board.agent",
    "ops.up.service",
    "ops.flower.server",
    "ops.board_health",
)
"""What the commands of the service import; with the transports that Celery only looks up when it connects."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree in a folder with a space in its name, half installed."""
    copy = tmp_path_factory.mktemp("fresh copy") / "rockchip llama"
    copy.mkdir()
    for name in ("api", "tasks", "npu", "ops"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.lock", "requirements-test.lock"):
        shutil.copy(ROOT / name, copy / name)
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/.unfinished").touch()
    (copy / ".venv/bin/python").symlink_to("/nonexistent")
    return copy


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_fresh_copy_installs_and_has_all_it_needs(copy: Path) -> None:
    """An interrupted installation is made anew, a second run does nothing, and no test tool is missed."""
    first = subprocess.run([copy / "ops/setup"], cwd="/", capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "Making .venv" in first.stderr
    second = subprocess.run([copy / "ops/setup"], cwd="/", capture_output=True, text=True, check=False)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    script = (
        f"import importlib\nfor name in {ENTRIES!r}: importlib.import_module(name)\n"
        "from tasks.broker import celery_app\n"
        "for url in ('redis://127.0.0.1:1/0', 'unix:///tmp/none.sock'): celery_app(url).connection_for_read().transport\n"
    )
    imports = subprocess.run(
        [copy / ".venv/bin/python", "-c", script], cwd="/", capture_output=True, text=True, check=False
    )
    assert imports.returncode == 0, imports.stderr
    version = subprocess.run(
        [copy / ".venv/bin/rockchipllama", "--version"], capture_output=True, text=True, check=False
    )
    assert version.stdout.startswith("rockchipllama ")


@pytest.mark.parametrize("script", ["run", "test", "check", "setup", "lock", "bundle"])
def test_a_script_is_executable_and_posix(script: str) -> None:
    """A board's sh is not bash."""
    path = ROOT / "ops" / script
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/bin/sh\n")
    done = subprocess.run(["/bin/sh", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
