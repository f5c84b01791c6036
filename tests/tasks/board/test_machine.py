"""What a board tells of itself, of trees as boards have them."""

from __future__ import annotations

from pathlib import Path

from tasks.board.machine import read_machine
from tests.npu.boards import make_board


def test_a_board_tells_its_chip_load_clock_and_heat(tmp_path: Path) -> None:
    """The clock as it is, beside what it could be, shows that a board is slowed down."""
    machine = read_machine(make_board(tmp_path, "rk3588"))
    assert (machine.soc, machine.driver, machine.npu_load) == ("rk3588", "0.9.8", (0, 7, 14))
    assert (machine.npu_hertz, machine.npu_highest) == (300_000_000, 1_000_000_000)
    assert machine.temperature == 51.0


def test_a_machine_without_an_npu_tells_none_of_that(tmp_path: Path) -> None:
    """Nothing is not 0."""
    machine = read_machine(tmp_path)
    assert (machine.soc, machine.npu_load, machine.npu_hertz, machine.npu_highest) == (None, None, None, None)
