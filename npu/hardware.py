"""What this machine is: its chip, cores, memory and temperature, as the kernel tells them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from npu.model_name import SOCS

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    total: int
    available: int
    """What can still be taken without swapping: the kernel's estimate, or what a control group leaves if that is less."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine at one moment."""

    soc: str | None
    """Such as `rk3588`; None on a machine that is no Rockchip."""
    board: str
    """The maker's name of the board; empty when the kernel does not tell."""
    cores: int
    big_cores: tuple[int, ...]
    """Numbers of the fastest cores; all of them where all are alike."""
    memory: Memory
    temperature: float | None
    """Of the hottest sensor, in degrees Celsius."""


def read_hardware(root: Path = ROOT) -> Hardware:
    """Look at the machine. Whatever the kernel does not tell is empty or None; `root` is another tree for tests."""
    big = read_big_cores(root)
    return Hardware(
        soc=read_soc(root),
        board=_text(root / "proc/device-tree/model").rstrip("\0").strip(),
        cores=_cores(root),
        big_cores=big,
        memory=read_memory(root),
        temperature=_temperature(root),
    )


def read_soc(root: Path = ROOT) -> str | None:
    """The chip, from the device tree."""
    for entry in _text(root / "proc/device-tree/compatible").split("\0"):
        vendor, _, chip = entry.partition(",")
        if vendor == "rockchip" and chip in SOCS:
            return "rk3588" if chip == "rk3588s" else chip  # The same NPU, fewer pins.
    return None


def read_big_cores(root: Path = ROOT) -> tuple[int, ...]:
    """The cores with the highest capacity, or clock where no capacity is given."""
    speeds: dict[int, int] = {}
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*")):
        text = _text(folder / "cpu_capacity") or _text(folder / "cpufreq/cpuinfo_max_freq")
        if text.strip().isdigit() and folder.name[3:].isdigit():
            speeds[int(folder.name[3:])] = int(text)
    if not speeds:
        return tuple(range(_cores(root)))
    # The big cores of one chip differ a little among themselves (binning), the small ones have half or less.
    fastest = max(speeds.values())
    return tuple(core for core, speed in sorted(speeds.items()) if speed >= 0.8 * fastest)


def read_memory(root: Path = ROOT) -> Memory:
    """Memory of the machine, or of the control group this process lives in where that holds less."""
    fields: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    total = fields.get("MemTotal", 0)
    available = fields.get("MemAvailable", fields.get("MemFree", 0))
    for limit, used in _group_limits(root):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)


def _group_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) of this process's control group and of each above it, for both generations of the interface."""
    found: list[tuple[int, int]] = []
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        top = base if not controllers else base / "memory"
        names = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = top / path.lstrip("/")
        for place in (folder, *folder.parents):
            limit, used = _text(place / names[0]).strip(), _text(place / names[1]).strip()
            if limit.isdigit() and used.isdigit():
                found.append((int(limit), int(used) - _reclaimable(place)))
            if place == top:
                break
    return found


def _reclaimable(group: Path) -> int:
    # The group's own count includes cached files, which the kernel gives back when asked: weights, for the most part.
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _cores(root: Path) -> int:
    if root == ROOT:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, len(list((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))))


def _temperature(root: Path) -> float | None:
    hottest = None
    for sensor in (root / "sys/class/thermal").glob("thermal_zone*/temp"):
        text = _text(sensor).strip()
        if text.lstrip("-").isdigit():
            hottest = max(hottest if hottest is not None else -273.0, int(text) / 1000)
    return hottest


def _text(path: Path) -> str:
    # Most of these files are missing on most machines, and some refuse to be read where they exist.
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
