"""The processor's cores."""

from __future__ import annotations

import os
from pathlib import Path

from npu.hardware.kernel import ROOT, number


def read_cores(root: Path = ROOT) -> int:
    """How many cores this process may run on; beneath another root, how many there are."""
    if root == ROOT:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, len(_folders(root)))


def read_big_cores(root: Path = ROOT) -> tuple[int, ...]:
    """Numbers of the cores with the highest capacity, or clock where no capacity is given; all where all are alike."""
    speeds: dict[int, int] = {}
    for core, folder in _folders(root).items():
        speed = number(folder / "cpu_capacity") or number(folder / "cpufreq/cpuinfo_max_freq")
        if speed:
            speeds[core] = speed
    if not speeds:
        return tuple(range(read_cores(root)))
    # The big cores of one chip differ a little among themselves (binning), the small ones have half or less.
    fastest = max(speeds.values())
    return tuple(core for core, speed in sorted(speeds.items()) if speed >= 0.8 * fastest)


def _folders(root: Path) -> dict[int, Path]:
    found = (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
    return {int(folder.name[3:]): folder for folder in found if folder.name[3:].isdecimal()}
