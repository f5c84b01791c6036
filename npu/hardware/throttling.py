"""What the kernel holds back because of heat."""

from __future__ import annotations

from pathlib import Path

from npu.hardware.kernel import ROOT, number, read

_CLOCKS = ("cpufreq", "devfreq", "processor")
"""Kinds of cooling devices that cool by slowing something down; others are fans."""


def read_throttled(root: Path = ROOT) -> tuple[str, ...] | None:
    """The cooling devices that slow a clock down now, such as `thermal-devfreq-0`; None where the kernel has none."""
    found: list[str] | None = None
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = read(folder / "type")
        if any(word in kind.lower() for word in _CLOCKS):
            found = found or []
            if number(folder / "cur_state"):
                found.append(kind)
    return tuple(found) if found is not None else None
