"""How messages call this program: as who reads them types it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ops.program import as_typed, elsewhere, given, program


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program, installed below the folder in which it is started, and not where the shell looks."""
    path = tmp_path / ".venv/bin/rockchipllama"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return path


def test_it_is_called_by_its_path_from_here(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that leads below; and on another machine not by the folders of this one."""
    assert program() == elsewhere() == ".venv/bin/rockchipllama"
    monkeypatch.setattr(sys, "argv", [".venv/bin/rockchipllama"])
    assert program() == ".venv/bin/rockchipllama"
    (installed.parents[2] / "ops").mkdir()
    monkeypatch.setattr(sys, "argv", ["ops/../.venv/bin/rockchipllama"])
    assert program() == ".venv/bin/rockchipllama"
    monkeypatch.chdir("/usr")
    monkeypatch.setattr(sys, "argv", [str(installed)])
    assert (program(), elsewhere()) == (str(installed), "rockchipllama")


def test_it_is_called_by_its_name_where_the_shell_finds_it(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But to root, whose shell looks elsewhere; another of that name is another."""
    monkeypatch.setenv("PATH", f"{installed.parent}{os.pathsep}/bin")
    assert (program(), program(by_name=False)) == ("rockchipllama", ".venv/bin/rockchipllama")
    other = installed.parents[2] / "rockchipllama"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert program() == ".venv/bin/rockchipllama"


def test_a_part_that_is_started_as_a_module_names_the_program(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one beside its Python; commands in what another process says become those of this one."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/ops/cli/main.py"])
    monkeypatch.setattr(sys, "executable", str(installed.with_name("python")))
    assert program() == ".venv/bin/rockchipllama"
    told = as_typed("Gone. `rockchipllama jobs` lists them; rockchipllama 0.1 is new.")
    assert told == "Gone. `.venv/bin/rockchipllama jobs` lists them; rockchipllama 0.1 is new."
    installed.unlink()
    assert program() == "rockchipllama"


def test_what_was_given_is_typed_again() -> None:
    """Quoted where a shell needs that, and nothing where nothing was."""
    assert given(url=None, data_dir=None) == ""
    assert (
        given(url="http://kitchen:8080", data_dir=Path("my data")) == " --url http://kitchen:8080 --data-dir 'my data'"
    )
