"""The console in a real browser, with Playwright installed for this test alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_boards import MANIFEST
from tests.installed import install
from tests.stack import LIMIT, eventually, free_port

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has Playwright. At home it is done without when that cannot be fetched."""
    return install("requirements-browser.lock", tmp_path_factory.mktemp("browser")) / "python"


def test_the_console(python: Path, tmp_path: Path) -> None:
    """Every test of `tests/browser/console.py`, over a service on an echo."""
    chromium = next((found for name in NAMES if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip(f"there is no browser here: none of {', '.join(NAMES)}")
    manifest = tmp_path / "models" / "echo" / "manifest.toml"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(MANIFEST.format("echo").replace("400.0", "60.0"))
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as output:
        service = subprocess.Popen(
            [
                *(sys.executable, "-m", "ops.cli.main", "up", "--port", str(port)),
                *("--data-dir", str(tmp_path / "data"), "--models-dir", str(tmp_path / "models")),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")},
            start_new_session=True,
        )
    try:
        eventually(lambda: "Ctrl-C stops everything." in log.read_text(), what="readiness")
        [api] = [each for each in psutil.Process(service.pid).children() if "api" in each.cmdline()]
        shots = Path(os.environ.get("CONSOLE_SHOTS") or tmp_path / "shots")
        shots.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                python,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--noconftest",
                "-c",
                os.devnull,
                "tests/browser/console.py",
            ],
            cwd=ROOT,
            env=os.environ
            | {
                "SERVICE": f"http://127.0.0.1:{port}",
                "CHROMIUM": chromium,
                "API_PID": str(api.pid),
                "SHOTS": str(shots),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        service.terminate()
        service.wait(LIMIT)
