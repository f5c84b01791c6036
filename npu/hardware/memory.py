"""How much memory there is, and how much of it can be taken."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from npu.hardware.kernel import ROOT, read


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    total: int
    available: int
    """What can still be taken without swapping: the kernel's estimate, or what a control group leaves if that is less."""
    swapped: int | None = None
    """What the machine has moved to swap and back since it started; None where the kernel does not tell."""


def read_memory(root: Path = ROOT) -> Memory:
    """Memory of the machine, or of the control group this process lives in where that holds less."""
    fields: dict[str, int] = {}
    for line in read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    total = fields.get("MemTotal", 0)
    available = fields.get("MemAvailable", fields.get("MemFree", 0))
    for limit, used in _group_limits(root, total):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available, _swapped(root))


def _swapped(root: Path) -> int | None:
    pages = [
        line.split() for line in read(root / "proc/vmstat").splitlines() if line.startswith(("pswpin ", "pswpout "))
    ]
    return sum(int(count) for _, count in pages) * os.sysconf("SC_PAGE_SIZE") if pages else None


def _group_limits(root: Path, total: int) -> list[tuple[int, int]]:
    """(limit, used) of this process's control group and of each above it that may hold less than `total`, for both generations
    of the interface."""
    found: list[tuple[int, int]] = []
    base = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
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
            limit = read(place / names[0])
            if limit.isdigit() and int(limit) < total and (used := read(place / names[1])).isdigit():
                found.append((int(limit), int(used) - _reclaimable(place)))
            if place == top:
                break
    return found


def _reclaimable(group: Path) -> int:
    # The group's own count includes cached files, which the kernel gives back when asked: weights, for the most part.
    for line in read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0
