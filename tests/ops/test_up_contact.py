"""What `up` says of the machine and to clients."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from npu.simulator import build
from ops.up import advice as advice_module
from ops.up.advice import Advice
from ops.up.contact import clients, computes, is_board
from ops.up.supervisor import StopAsked, Supervisor
from tasks.settings import TaskSettings
from tests.npu.boards import as_nobody, make_board
from tests.simulators import SIMULATORS
from tests.stack import LIMIT


def settings(library: str = "/nowhere/librkllmrt.so") -> TaskSettings:
    """With the library of the runtime there, whose version is known."""
    return TaskSettings(rkllm_library=library, rkllm_version="1.2.3")


def test_a_board_names_its_npu(tmp_path: Path) -> None:
    """With the versions of driver and runtime."""
    board = make_board(tmp_path, "rk3588")
    library = str(build("1.2.3", SIMULATORS))
    assert computes(settings(library), board).startswith("the NPU of this rk3588, driver 0.9.8, runtime 1.2.3;")
    assert is_board(settings(library), board)


def test_a_board_without_a_runtime_has_its_cpu(tmp_path: Path) -> None:
    """The NPU is there, and of no use."""
    said = computes(settings(), make_board(tmp_path, "rk3588"))
    assert said.startswith("the CPU: ") and "no runtime (librkllmrt.so)" in said and "doctor" in said


def test_a_machine_without_one_has_its_cpu(tmp_path: Path) -> None:
    """Which is no fault; a simulator is called one."""
    assert "the CPU of this machine" in computes(settings(), tmp_path)
    assert "a simulator" in computes(settings("simulator"), tmp_path)
    assert not is_board(settings(), tmp_path)


def test_a_board_is_told_what_would_be_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to type, as the doctor says; one that says nothing of use is passed over."""
    monkeypatch.setattr(advice_module, "PATIENCE", LIMIT)
    doctor = [sys.executable, "-m", "ops.cli.main", "doctor", "--json", "--soc", "rk3588"]
    with Supervisor() as supervisor:
        lines = list(Advice(doctor).lines(supervisor.until))
        assert list(Advice([sys.executable, "-c", "raise SystemExit"]).lines(supervisor.until)) == []
    at = lines.index("The NPU's driver is not in this kernel.")
    assert lines[at + 1].startswith("  $ uname -r")


def test_who_stops_it_waits_for_no_doctor() -> None:
    """Signals are heard while one is at work, who is told to stop."""
    advice = Advice([sys.executable, "-c", "import time; time.sleep(600)"])
    with Supervisor() as supervisor:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopAsked):
            list(advice.lines(supervisor.until))
    assert advice._doctor.poll() is not None


def test_an_npu_that_cannot_be_used_is_told_with_what_to_do(tmp_path: Path) -> None:
    """And with why: this user may not, or the kernel cannot."""
    # Folders of tests are closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        root = make_board(Path(folder), "rk3588")
        root.chmod(0o755)
        (root / "dev/dri/renderD129").chmod(0o600 if os.geteuid() == 0 else 0o000)
        assert "may not open /dev/dri/renderD129" in as_nobody(lambda: computes(settings(), root))
    bare = tmp_path / "bare"
    (bare / "proc/device-tree").mkdir(parents=True)
    (bare / "proc/device-tree/compatible").write_text("radxa,rock-5b\0rockchip,rk3588\0")
    said = computes(settings(), bare)
    assert "no driver for it" in said and "doctor" in said


def test_clients_are_told_the_address_that_they_can_reach() -> None:
    """Which this machine's own is not."""
    assert clients("http://192.0.2.7:8080").startswith(
        "Open WebUI http://192.0.2.7:8080/v1, Home Assistant http://192.0.2.7:8080 "
    )
    assert "on this machine only" in clients("http://127.0.0.1:8080")
    assert "on this machine only" in clients("http://[::1]:8080")
