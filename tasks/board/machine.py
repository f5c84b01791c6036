"""What this board tells of itself with each breath."""

from __future__ import annotations

import time
from pathlib import Path

from npu.hardware import read_board
from npu.hardware.device import read_npu
from npu.hardware.kernel import ROOT
from npu.hardware.soc import read_soc
from tasks.board.heat import Heat
from tasks.presence import Machine


def read_machine(heat: Heat, root: Path = ROOT) -> Machine:
    """The machine now, and what `heat` makes of it. It costs under a millisecond, and wakes no NPU. `root` is another tree,
    for tests."""
    board = read_board(root)
    npu = next((clock for clock in board.clocks if clock.of == "npu"), None)
    return Machine(
        soc=board.soc.name if board.soc is not None else None,
        name=board.model or None,
        driver=board.npu.driver.version,
        npu_load=board.npu.load,
        npu_hertz=npu.hertz if npu is not None else None,
        npu_highest=npu.available[-1] if npu is not None and npu.available else None,
        temperature=max(board.temperatures.values(), default=None),
        limit=min((zone.limit for zone in board.zones if zone.limit is not None), default=None),
        hot=heat.look(board),
        throttled=board.throttled,
        memory=board.memory.total,
        memory_available=board.memory.available,
        swapped=board.memory.swapped,
    )


def node_is_missing(root: Path = ROOT) -> bool:
    """Whether this machine has an NPU that this user cannot reach yet; drivers come up after services, at times. One that the
    kernel's own driver has will not be there later either."""
    if read_soc(root) is None:
        return False
    npu = read_npu(root)
    return not npu.driver.mainline and (npu.node is None or not npu.node.usable)


def since_boot() -> float:
    """Seconds since this machine was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
