"""What this machine is, as the kernel tells it: chip, NPU, cores, clocks, memory, temperatures.

Everything is read beneath a root folder, so that tests can build a board out of files. Nothing here writes, and nothing
wakes an NPU that sleeps.
"""

from npu.hardware.board import Board, OpenFiles, read_board
from npu.hardware.clocks import Clock, read_clocks
from npu.hardware.cpu import read_big_cores, read_cores
from npu.hardware.device import Driver, Node, Npu, read_npu
from npu.hardware.kernel import ROOT
from npu.hardware.memory import Memory, read_memory
from npu.hardware.soc import SOCS, Soc, read_soc, soc_named
from npu.hardware.thermal import Zone

__all__ = [
    "ROOT",
    "SOCS",
    "Board",
    "Clock",
    "Driver",
    "Memory",
    "Node",
    "Npu",
    "OpenFiles",
    "Soc",
    "Zone",
    "read_big_cores",
    "read_board",
    "read_clocks",
    "read_cores",
    "read_memory",
    "read_npu",
    "read_soc",
    "soc_named",
]
