"""What a board tells of itself, of trees as boards have them."""

from __future__ import annotations

import resource
from pathlib import Path

from tasks.board.heat import Heat
from tasks.board.machine import node_is_missing, read_machine
from tests.npu.boards import make_board, put


def test_a_board_tells_its_chip_load_clock_and_heat(tmp_path: Path) -> None:
    """The clock as it is, beside what it could be, shows that a board is slowed down."""
    machine = read_machine(Heat(), make_board(tmp_path, "rk3588"))
    assert (machine.soc, machine.driver, machine.npu_load) == ("rk3588", "0.9.8", (0, 7, 14))
    assert (machine.npu_hertz, machine.npu_highest) == (300_000_000, 1_000_000_000)
    assert (machine.temperature, machine.limit, machine.hot) == (51.0, 85.0, False)


def test_heat_and_swap_are_told_as_the_kernel_tells_them(tmp_path: Path) -> None:
    """A fan that turns slows nothing down; what went to swap is counted in whole pages."""
    root = make_board(tmp_path, "rk3588")
    before = read_machine(Heat(), root)
    assert (before.throttled, before.swapped) == ((), None)
    for number, (kind, state) in enumerate([("pwm-fan", 3), ("thermal-cpufreq-0", 0), ("thermal-devfreq-0", 2)]):
        put(root, f"sys/class/thermal/cooling_device{number}/type", f"{kind}\n")
        put(root, f"sys/class/thermal/cooling_device{number}/cur_state", f"{state}\n")
    put(root, "proc/vmstat", "pgpgin 77\npswpin 2\npswpout 3\n")
    machine = read_machine(Heat(), root)
    assert (machine.throttled, machine.hot) == (("thermal-devfreq-0",), True)
    assert machine.swapped == 5 * resource.getpagesize()


def test_a_machine_without_an_npu_tells_none_of_that(tmp_path: Path) -> None:
    """Nothing is not 0."""
    machine = read_machine(Heat(), tmp_path)
    assert (machine.soc, machine.npu_load, machine.npu_hertz, machine.npu_highest) == (None, None, None, None)
    assert (machine.temperature, machine.limit, machine.throttled, machine.hot) == (None, None, None, None)


def test_a_node_is_missing_where_there_is_an_npu_that_cannot_be_reached_yet(tmp_path: Path) -> None:
    """Not where there is none, and not where it will not come, as another driver has it."""
    root = make_board(tmp_path / "board", "rk3588")
    assert not node_is_missing(root)
    (root / "dev/dri/renderD129").unlink()
    assert node_is_missing(root)
    (root / "sys/module/rocket").mkdir(parents=True)
    assert not node_is_missing(root)
    assert not node_is_missing(tmp_path)
