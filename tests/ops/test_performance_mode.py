"""ops/board/performance-mode, run on boards made of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from npu.hardware import read_board
from tasks.settings import ROOT
from tests.npu.boards import KINDS, make_board, put

SCRIPT = ROOT / "ops/board/performance-mode"


def run(root: Path, action: str, script: Path = SCRIPT, **options: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), action, "--root", str(root)], capture_output=True, text=True, check=False, timeout=60, **options
    )


def governors(root: Path) -> dict[str, str | None]:
    return {clock.name: clock.governor for clock in read_board(root).clocks}


def contents(root: Path) -> dict[str, str]:
    """Every file that is there and its text."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_text() for path in files}


@pytest.mark.parametrize("chip", KINDS)
def test_on_and_off(tmp_path: Path, chip: str) -> None:
    """All clocks of each chip stay up, and afterwards everything is as it was, file by file."""
    root = make_board(tmp_path / "a board", chip)
    before = contents(root)
    assert set(governors(root).values()) == {"ondemand"}
    done = run(root, "on")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(governors(root).values()) == {"performance"}
    assert done.stdout.count("ondemand -> performance") == len(KINDS[chip].policies) + 2
    done = run(root, "off")
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(root) == before


def test_on_twice_remembers_the_first(tmp_path: Path) -> None:
    """Else the second `on` would take its own work for what was there before; what came up meanwhile is set, too."""
    root = make_board(tmp_path, "rk3588")
    put(root, "sys/class/devfreq/dmc/governor", "userspace\n")
    run(root, "on")
    put(root, "sys/devices/system/cpu/cpufreq/policy6/scaling_governor", "schedutil\n")
    assert "fdab0000.npu/governor: performance already" in run(root, "on").stdout
    assert set(governors(root).values()) == {"performance"}
    run(root, "off")
    assert governors(root) == {
        "policy0": "ondemand",
        "policy4": "ondemand",
        "policy6": "ondemand",
        "fdab0000.npu": "ondemand",
        "dmc": "userspace",
    }


def test_a_board_already_set_is_left_alone(tmp_path: Path) -> None:
    """And `off` gives back nothing that was not taken."""
    root = make_board(tmp_path, "rk3576", governor="performance")
    assert run(root, "on").returncode == 0
    done = run(root, "off")
    assert done.returncode == 0 and "Nothing to give back" in done.stdout
    assert set(governors(root).values()) == {"performance"}


def test_a_clock_without_that_governor_is_left_alone(tmp_path: Path) -> None:
    """It is named, and the others are set; a word that only contains the governor's is not it."""
    root = make_board(tmp_path, "rk3588")
    put(root, "sys/class/devfreq/dmc/available_governors", "dmc_ondemand my_performance performances\n")
    done = run(root, "on")
    assert done.returncode == 0
    assert "/sys/class/devfreq/dmc/governor: no governor `performance` here; it stays ondemand" in done.stdout
    assert governors(root)["dmc"] == "ondemand" and governors(root)["policy0"] == "performance"


def test_a_kernel_that_refuses(tmp_path: Path) -> None:
    """Each refusal is told and fails the command; what could not be given back is not forgotten."""
    root = make_board(tmp_path, "rk3562")
    run(root, "on")
    governor = root / "sys/class/devfreq/dmc/governor"
    governor.unlink()
    governor.symlink_to("/dev/null")  # Takes every word, and has none.
    done = run(root, "off")
    assert done.returncode == 1
    assert "does not take ondemand back in /sys/class/devfreq/dmc/governor" in done.stderr
    assert governors(root)["policy0"] == "ondemand"
    on = run(root, "on")
    assert on.returncode == 1 and "does not accept `performance` in /sys/class/devfreq/dmc/governor" in on.stderr
    governor.unlink()
    governor.write_text("performance\n")
    assert run(root, "off").returncode == 0
    assert set(governors(root).values()) == {"ondemand"}


def test_status_shows_and_changes_nothing(tmp_path: Path) -> None:
    """Governor and clock of each, in MHz, and whether this script was at work."""
    root = make_board(tmp_path, "rk3588")
    before = contents(root)
    done = run(root, "status")
    assert done.stdout.splitlines() == [
        *(f"policy{first}: ondemand, 1200 MHz" for first in (0, 4, 6)),
        "fdab0000.npu: ondemand, 300 MHz",
        "dmc: ondemand, 300 MHz",
    ]
    assert contents(root) == before
    run(root, "on")
    assert "Set by this script" in run(root, "status").stdout


def test_the_debug_files_are_left_alone(tmp_path: Path) -> None:
    """Reading the NPU's `freq` wakes it. Here whoever reads it waits for a writer who never comes."""
    root = make_board(tmp_path, "rk3588")
    (root / "sys/kernel/debug/rknpu/freq").rmdir()
    os.mkfifo(root / "sys/kernel/debug/rknpu/freq")
    os.mkfifo(root / "sys/kernel/debug/rknpu/volt")
    for action in ("status", "on", "status", "off"):
        assert run(root, action).returncode == 0


def test_a_machine_without_governors(tmp_path: Path) -> None:
    """Such as a virtual one: nothing to do is no failure."""
    done = run(tmp_path, "on")
    assert done.returncode == 0 and "There is nothing to set" in done.stdout


def test_without_rights_it_says_what_to_type() -> None:
    """And changes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_board(Path(folder) / "board", "rk3588")
        Path(folder).chmod(0o755)
        script = Path(shutil.copy(SCRIPT, folder))
        if os.geteuid() == 0:
            done = run(root, "on", script, user=65534, group=65534)
            seen = run(root, "status", script, user=65534, group=65534)
        else:
            for path in root.rglob("*governor"):
                path.chmod(0o444)
            done, seen = run(root, "on", script), run(root, "status", script)
        assert done.returncode == 1
        assert "sudo ops/board/performance-mode on" in done.stderr
        assert set(governors(root).values()) == {"ondemand"}
        assert seen.returncode == 0 and "dmc: ondemand" in seen.stdout


@pytest.mark.parametrize(
    "words", [(), ("on", "off"), ("on", "--root"), ("sideways",), ("on", "--root", "/nonexistent/root")]
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    done = subprocess.run([str(SCRIPT), *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stderr


def test_it_is_executable_and_posix() -> None:
    """A board's sh is not bash."""
    assert SCRIPT.stat().st_mode & 0o111
    assert SCRIPT.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["/bin/sh", "-n", str(SCRIPT)], check=False, timeout=60).returncode == 0
