"""The governors of boards made of files, raised and given back."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import threading
from pathlib import Path

import pytest

from npu.hardware import read_board
from tasks.at_work import anybody_at_work, at_work
from tasks.board.governors import IDLE, Governors
from tasks.board.settings import RaiseGovernors
from tests.npu.boards import as_nobody, make_board, put

GOVERNOR = "sys/class/devfreq/fdab0000.npu/governor"


class Place:
    """A board, agents that follow each other on it, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.root = make_board(folder / "board", "rk3588")
        put(self.root, "proc/sys/kernel/random/boot_id", "first\n")
        self.data = folder / "data"
        self.now = 0.0
        self.file = self.data / "run/governors.json"

    def agent(self, when: RaiseGovernors = "on-demand") -> Governors:
        made = Governors(when, self.data, self.root, lambda: self.now)
        made.give_back_an_earlier_agents()
        return made

    def all_are(self, name: str) -> bool:
        return {clock.governor for clock in read_board(self.root).clocks} == {name}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def working() -> bool:
    return True


def resting() -> bool:
    return False


def test_they_are_up_while_there_is_work(place: Place) -> None:
    """And for a moment after it, in which the next one may come; what is remembered is written once for many jobs."""
    agent = place.agent()
    agent.look(resting)
    assert place.all_are("ondemand") and not place.file.exists()
    for _ in range(2):
        agent.look(working)
        assert place.all_are("performance")
        written = place.file.stat().st_mtime_ns
        place.now += IDLE - 0.1
        agent.look(resting)
        assert place.all_are("performance")
        place.now += 0.2
        agent.look(resting)
        assert place.all_are("ondemand")
        assert place.file.stat().st_mtime_ns == written
        os.utime(place.file, ns=(1, 1))
    agent.look(working)
    assert place.file.stat().st_mtime_ns == 1
    agent.give_back()
    assert place.all_are("ondemand") and not place.file.exists()


def test_the_next_agent_gives_back_what_a_killed_one_raised(place: Place) -> None:
    """Also one that is to raise nothing. After a new start of the machine there is nothing to give back."""
    place.agent().look(working)
    assert place.all_are("performance")
    place.agent("never")
    assert place.all_are("ondemand") and not place.file.exists()
    place.agent().look(working)
    put(place.root, "proc/sys/kernel/random/boot_id", "second\n")
    place.agent("never")
    assert place.all_are("performance") and not place.file.exists()


def test_always_and_never(place: Place) -> None:
    """Whether there is work or not."""
    agent = place.agent("never")
    agent.look(working)
    assert place.all_are("ondemand")
    agent = place.agent("always")
    agent.look(resting)
    place.now += 10 * IDLE
    agent.look(resting)
    assert place.all_are("performance")


def test_what_somebody_else_has_set_stays(place: Place) -> None:
    """Before, as `performance-mode` does, and meanwhile."""
    put(place.root, GOVERNOR, "performance\n")
    agent = place.agent()
    agent.look(working)
    put(place.root, "sys/class/devfreq/dmc/governor", "userspace\n")
    agent.give_back()
    governors = {clock.name: clock.governor for clock in read_board(place.root).clocks}
    assert (governors["fdab0000.npu"], governors["dmc"], governors["policy0"]) == (
        "performance",
        "userspace",
        "ondemand",
    )


def test_a_kernel_that_refuses_is_told_of_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """With what to do about it; what was raised already is given back, and nothing more is tried."""
    governor = place.root / "sys/class/devfreq/dmc/governor"
    governor.unlink()
    governor.symlink_to("/proc/self/oom_score_adj")  # takes numbers only
    agent = place.agent()
    agent.look(working)
    agent.look(working)
    [told] = caplog.messages
    assert (
        "/sys/class/devfreq/dmc/governor cannot be written (Invalid argument)" in told
        and "ROCKCHIPLLAMA_GOVERNORS=never" in told
    )
    assert read_board(place.root).clocks[0].governor == "ondemand"


def test_who_may_not_is_told_what_to_type() -> None:
    """And nothing is changed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        place = Place(Path(folder))
        place.data.mkdir(mode=0o777)
        place.data.chmod(0o777)
        for path in place.root.rglob("*governor"):
            path.chmod(0o444)

        def look() -> str:
            told = io.StringIO()
            logging.getLogger("rockchipllama.board").addHandler(logging.StreamHandler(told))
            place.agent().look(working)
            return told.getvalue()

        told = as_nobody(look)
        assert "policy0/scaling_governor may be written by root only" in told
        assert "sudo ops/board/performance-mode on" in told
        assert place.all_are("ondemand")


def test_a_machine_without_an_npu_is_left_alone(place: Place) -> None:
    """Nobody's desktop gets loud."""
    for gone in ("sys/firmware/devicetree/base/compatible",):
        (place.root / gone).unlink()
    (place.root / "sys/class/devfreq/fdab0000.npu").unlink()
    place.agent("always").look(working)
    assert place.all_are("ondemand")


def test_somebody_is_at_work_until_the_last_one_is_not(tmp_path: Path) -> None:
    """Each worker for itself, and no process that was forked meanwhile."""
    assert not anybody_at_work(tmp_path)
    with at_work(tmp_path):
        with at_work(tmp_path):
            assert anybody_at_work(tmp_path)
            child = os.fork()
            if child == 0:
                threading.Event().wait(60)
                os._exit(0)
        assert anybody_at_work(tmp_path)
    assert not anybody_at_work(tmp_path)
    os.kill(child, 9)
    os.waitpid(child, 0)
