"""What is installed for one test alone, with the versions of a lock file."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tasks.settings import ROOT


def install(lock: str, folder: Path) -> Path:
    """The `bin` of a virtual environment in `folder` that has what this lock file names."""
    venv.create(folder, with_pip=True)
    fetch([folder / "bin" / "python", *_pip(lock)], folder)
    return folder / "bin"


def install_packages(lock: str, folder: Path) -> None:
    """Puts them into `folder`, for the Python of the tests to import from."""
    fetch([sys.executable, *_pip(lock), "--target", folder], folder)


def fetch(command: list[str | Path], folder: Path) -> None:
    """Runs in `folder` what installs something. Skips the test where that cannot be had, but not in CI."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"what this needs cannot be fetched: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stderr


def _pip(lock: str) -> list[str | Path]:
    quietly = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [*quietly, "--require-hashes", "--no-deps", "-r", ROOT / lock]
