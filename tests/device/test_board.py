"""What the kernel of a board tells."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from npu.hardware import ROOT, Board, read_board
from tasks.settings import ROOT as PROJECT


@pytest.fixture(scope="module")
def root() -> Path:
    """This machine's own tree."""
    return ROOT


@pytest.fixture(scope="module")
def board(root: Path) -> Board:
    found = read_board(root)
    if found.soc is None:
        pytest.skip("this machine has no Rockchip NPU; the runtime is simulated")
    return found


def test_the_driver_is_there_and_open(board: Board) -> None:
    """To this user."""
    assert board.npu.driver.present and not board.npu.driver.mainline
    assert board.npu.node is not None and board.npu.node.usable


def test_the_performance_mode_can_be_read(board: Board, root: Path) -> None:
    """Clock and governor of the NPU, as the kernel has them and as the script shows them."""
    npu = [clock for clock in board.clocks if clock.of == "npu"]
    if not npu:
        pytest.skip("this kernel tells no clock of the NPU")
    assert npu[0].governor in npu[0].governors
    shown = subprocess.run(
        [PROJECT / "ops/board/performance-mode", "status", "--root", str(root)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert f"{npu[0].name}: {npu[0].governor}" in shown.stdout
