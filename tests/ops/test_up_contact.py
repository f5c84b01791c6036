"""What `up` says of the machine and to clients."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ops.up.contact import clients, computes
from tests.npu.boards import as_nobody, make_board


def test_a_board_names_its_npu(tmp_path: Path) -> None:
    """With the driver's version."""
    assert computes("", make_board(tmp_path, "rk3588")).startswith("the NPU of this rk3588, driver 0.9.8")


def test_a_machine_without_one_has_its_cpu(tmp_path: Path) -> None:
    """Which is no fault; a simulator is called one."""
    assert "the CPU of this machine" in computes("", tmp_path)
    assert "a simulator" in computes("simulator", tmp_path)


def test_an_npu_that_cannot_be_used_is_told_with_what_to_do(tmp_path: Path) -> None:
    """And with why: this user may not, or the kernel cannot."""
    # Folders of tests are closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        root = make_board(Path(folder), "rk3588")
        root.chmod(0o755)
        (root / "dev/dri/renderD129").chmod(0o600 if os.geteuid() == 0 else 0o000)
        assert "may not open /dev/dri/renderD129" in as_nobody(lambda: computes("", root))
    bare = tmp_path / "bare"
    (bare / "proc/device-tree").mkdir(parents=True)
    (bare / "proc/device-tree/compatible").write_text("radxa,rock-5b\0rockchip,rk3588\0")
    assert "no driver for it" in computes("", bare) and "doctor" in computes("", bare)


def test_clients_are_told_the_address_that_they_can_reach() -> None:
    """Which this machine's own is not."""
    assert clients("http://192.0.2.7:8080").startswith(
        "Open WebUI http://192.0.2.7:8080/v1, Home Assistant http://192.0.2.7:8080 "
    )
    assert "on this machine only" in clients("http://127.0.0.1:8080")
    assert "on this machine only" in clients("http://[::1]:8080")
