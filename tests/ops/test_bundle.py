"""The archive for machines without the internet: what is in it, and an installation from it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ops import environment
from ops.bundle import applies, lock_entries, project_files
from tasks.settings import ROOT
from tasks.version import VERSION

LOCK = list(lock_entries((ROOT / "requirements.lock").read_text()))
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
NO_ROUTE = ("unshare", "--map-root-user", "--net")


def chosen(arch: str, python: str) -> set[str]:
    return {requirement.name for requirement, _ in LOCK if applies(requirement, arch, python)}


def test_each_package_is_asked_for_by_version_and_hash() -> None:
    """And without its condition, which holds or does not on the other machine."""
    assert len(LOCK) == len(re.findall(r"^\w.*==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)) > 50
    for requirement, line in LOCK:
        assert line.startswith(f"{requirement.name}==")
        assert line.count("--hash=sha256:") >= 1 and ";" not in line and line.count("\n") == 1


def test_conditions_are_those_of_the_other_machine() -> None:
    """Whatever this one is; what only some releases of a Python want goes along."""
    assert "async-timeout" in chosen("aarch64", "3.11")
    assert "async-timeout" not in chosen("aarch64", "3.12")
    assert not {"colorama", "tzdata"} & chosen("aarch64", "3.12")
    for python in ("3.11", "3.12", "3.14"):
        versions = [str(r.specifier) for r, _ in LOCK if r.name == "numpy" and applies(r, "aarch64", python)]
        assert len(versions) == 1


def test_the_project_goes_along_without_its_tests() -> None:
    """And without what lies in the folder and git does not know."""
    files = {str(path) for path in project_files()}
    assert {"ops/setup", "ops/run", "requirements.lock", "pyproject.toml", "api/console/index.html"} <= files
    assert not [name for name in files if name.startswith(("tests/", ".venv/", "data/", ".git/"))]


def setup_offline(folder: Path, made_for: str | None) -> str:
    """What `ops/setup --offline` says in a folder whose bundle is for that."""
    shutil.copytree(ROOT / "ops", folder / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    if made_for is not None:
        (folder / "wheels").mkdir()
        (folder / "wheels/made-for").write_text(made_for + "\n")
    done = subprocess.run([folder / "ops/setup", "--offline"], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    assert not (folder / ".venv").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("made_for", "why"),
    [
        (None, "there are no packages in wheels/ to install from"),
        ("sparc64 3.11 3.12", f"this bundle is for sparc64, and this machine is {platform.machine()}"),
        (f"{platform.machine()} 2.7 3.0", "and this bundle is for Python 2.7 3.0 with venv"),
    ],
    ids=["no bundle", "another machine", "another Python"],
)
def test_a_bundle_that_does_not_fit_is_refused(made_for: str | None, why: str, tmp_path: Path) -> None:
    """Before anything is made, and with what would do."""
    assert why in setup_offline(tmp_path, made_for)


@pytest.mark.full
@pytest.mark.model
@pytest.mark.timeout(1800)
def test_it_is_installed_and_used_where_no_route_leads_out(tmp_path: Path) -> None:
    """Install, start, chat, and the description of the API with all of its files."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*NO_ROUTE, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine lets no user make a network of their own")
    archive = tmp_path / "bundle.tar"
    command = [ROOT / "ops/bundle", "--python", HERE, "--demo-model", archive]
    subprocess.run(command, check=True, timeout=900)
    with tarfile.open(archive) as bundle:
        bundle.extractall(tmp_path, filter="data")
    folder = tmp_path / f"rockchipllama-{VERSION}"
    # Nothing that this machine tells pip may help.
    kept = {name: value for name, value in environment.for_child({}).items() if not name.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run(
        [*NO_ROUTE, sys.executable, Path(__file__).parent / "parts/offline_visit.py", folder],
        env={**kept, "PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["route"] == "ENETUNREACH"
    assert found["model"] == "smollm2-135m-instruct"
    status, answer = found["chat"]
    assert status == 200 and answer
    status, files = found["docs"]
    assert status == 200 and len(files) == 3 and set(files.values()) == {200}
    assert found["ended"] == 0
