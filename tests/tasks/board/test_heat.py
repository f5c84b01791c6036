"""Whether heat slows a board down, on boards made of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from npu.hardware import read_board
from tasks.board.heat import CALM, Heat
from tests.npu.boards import make_board, put

CURVE = Path(__file__).with_name("heat_rk3588.csv")


class Warming:
    """A board whose files a test changes, and what is made of them."""

    def __init__(self, root: Path) -> None:
        self.root = make_board(root, "rk3588")
        self.now = 0.0
        self.heat = Heat(lambda: self.now)

    def set(self, celsius: float, cap_mhz: int = 1000, state: int = 0) -> None:
        put(self.root, "sys/class/thermal/thermal_zone0/temp", f"{celsius * 1000:.0f}\n")
        put(self.root, "sys/class/devfreq/fdab0000.npu/max_freq", f"{cap_mhz}000000\n")
        put(self.root, "sys/class/thermal/cooling_device1/cur_state", f"{state}\n")

    def look(self, after: float = 0.0) -> bool | None:
        self.now += after
        return self.heat.look(read_board(self.root))


@pytest.fixture
def board(tmp_path: Path) -> Warming:
    return Warming(tmp_path)


def curve() -> Iterator[tuple[float, float, int, int]]:
    for line in CURVE.read_text().splitlines():
        if not line.startswith("#"):
            seconds, celsius, cap, state = line.split(",")
            yield float(seconds), float(celsius), int(cap), int(state)


def test_a_stretch_of_load_is_one_spell_of_heat(board: Warming) -> None:
    """However often the kernel lets the clock go within it; it is over once the board has been cool for a minute."""
    turns, before, releases = [], False, 0
    for seconds, celsius, cap, state in curve():
        board.now = seconds
        releases += bool(turns) and len(turns) == 1 and not state
        board.set(celsius, cap, state)
        now = board.look()
        assert now is not None
        if now is not before:
            turns.append((seconds, celsius))
        before = now
    [(began, hot), (ended, cool)] = turns
    assert began < 200 and hot >= 85
    assert 600 + CALM < ended < 800 and cool < 75
    assert releases > 5  # else this curve shows nothing


@pytest.mark.parametrize(
    ("celsius", "cap", "state"),
    [(85.0, 1000, 0), (70.0, 1000, 1), (80.0, 700, 0)],
    ids=["at its limit", "a clock is held down", "a clock is capped on a warm board"],
)
def test_what_counts_as_hot(board: Warming, celsius: float, cap: int, state: int) -> None:
    """Each alone is enough, since kernels differ in what they tell."""
    board.set(60)
    assert board.look() is False
    board.set(celsius, cap, state)
    assert board.look() is True


def test_a_cool_board_that_somebody_has_capped_is_not_hot(board: Warming) -> None:
    """Clocks are lowered for other reasons as well."""
    board.set(60, 700)
    assert board.look() is False


def test_a_board_that_stays_warm_stays_hot(board: Warming) -> None:
    """Until it is ten degrees below its limit, and then for a minute; a moment in which it is not begins that anew."""
    board.set(85)
    board.look()
    board.set(76)
    assert board.look(after=10 * CALM) is True
    board.set(75)
    assert board.look() is True
    assert board.look(after=CALM - 1) is True
    board.set(75.1)
    assert board.look(after=1) is True
    board.set(75)
    assert board.look() is True
    assert board.look(after=CALM - 1) is True
    assert board.look(after=1) is False


def test_a_machine_that_tells_no_limit_is_neither(tmp_path: Path) -> None:
    """A sensor alone says nothing of when it is too much."""
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "99000\n")
    assert Heat().look(read_board(tmp_path)) is None
