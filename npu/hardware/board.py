"""Everything about this machine in one look."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npu.hardware.clocks import Clock, read_clocks
from npu.hardware.cpu import read_big_cores, read_cores
from npu.hardware.device import Npu, read_npu
from npu.hardware.kernel import ROOT, in_container, read
from npu.hardware.memory import Memory, read_memory
from npu.hardware.soc import Soc, find_soc, read_compatible
from npu.hardware.thermal import Zone, read_zones
from npu.hardware.throttling import read_throttled

_OPEN_FILES = re.compile(r"^Max open files\s+(\S+)\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """How many files this process may have open, and how far it may raise that by itself."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Board:
    """One machine at one moment, a Rockchip board or not."""

    soc: Soc | None
    """None on a machine whose chip is not known to run language models on an NPU."""
    soc_source: str
    """How the chip is known: `setting`, `device tree`, `NPU address`; empty when it is not."""
    model: str
    """The maker's name of the board; empty when the kernel does not tell."""
    compatible: tuple[str, ...]
    """What the device tree calls it, the board first."""
    cores: int
    big_cores: tuple[int, ...]
    """Numbers of the fastest cores; all of them where all are alike."""
    memory: Memory
    npu: Npu
    clocks: tuple[Clock, ...]
    zones: tuple[Zone, ...]
    """Its sensors of heat."""
    throttled: tuple[str, ...] | None
    """What is slowed down by heat now, by the kernel's names; None where it does not tell."""
    open_files: OpenFiles | None
    container: bool
    """Whether this process sees a container's file system."""
    device_tree_hidden: bool
    """Whether the kernel has a device tree that cannot be seen, as in a container: the RKLLM runtime looks for it, too."""

    @property
    def temperatures(self) -> Mapping[str, float]:
        """Degrees Celsius by sensor, such as `npu-thermal`."""
        return {zone.name: zone.celsius for zone in self.zones}


def read_board(root: Path = ROOT, soc: str | None = None) -> Board:
    """Look at the machine. Whatever the kernel does not tell is empty or None.

    `root` is another tree, for tests. `soc` names the chip instead of looking for it; raises `ValueError` when it is none
    we know.
    """
    found, source = find_soc(root, soc)
    compatible = read_compatible(root)
    return Board(
        soc=found,
        soc_source=source,
        model=read(root / "proc/device-tree/model"),
        compatible=compatible,
        cores=read_cores(root),
        big_cores=read_big_cores(root),
        memory=read_memory(root),
        npu=read_npu(root, found.npu_cores if found is not None else None),
        clocks=read_clocks(root),
        zones=read_zones(root),
        throttled=read_throttled(root),
        open_files=_open_files(root),
        container=in_container(root),
        # The link is the kernel's and always there; a container hides what it leads to.
        device_tree_hidden=not compatible and os.path.lexists(root / "proc/device-tree"),
    )


def _open_files(root: Path) -> OpenFiles | None:
    found = _OPEN_FILES.search(read(root / "proc/self/limits"))
    if found is None:
        return None
    soft, hard = (int(word) if word.isdecimal() else sys.maxsize for word in found.groups())
    return OpenFiles(soft, hard)
