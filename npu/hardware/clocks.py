"""The clocks of CPU, NPU and memory, and the governors that set them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from npu.hardware.kernel import ROOT, number, read


@dataclass(frozen=True, slots=True)
class Clock:
    """One clock at one moment, in hertz. What the kernel does not tell is None or empty."""

    of: Literal["cpu", "npu", "ddr"]
    name: str
    """The kernel's: `policy4`, `fdab0000.npu`, `dmc`."""
    hertz: int | None
    """Now."""
    available: tuple[int, ...]
    """What it may be set to, in rising order."""
    cap: int | None
    """The fastest it is let go at the moment, by heat or by who runs the machine."""
    governor: str | None
    governors: tuple[str, ...]
    """Those the kernel has for it."""

    @property
    def capped(self) -> bool:
        """Whether it may not go as fast as it could."""
        return self.cap is not None and bool(self.available) and self.cap < self.available[-1]


def read_clocks(root: Path = ROOT) -> tuple[Clock, ...]:
    """Every clock that matters to a model: one for each group of CPU cores, the NPU's, the memory's.

    All of it comes from the frequency drivers. The NPU's debug file `freq` is left alone: reading it powers the NPU on.
    """
    clocks = [_cpu(folder) for folder in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy[0-9]*"))]
    devices = root / "sys/class/devfreq"
    clocks += [_device("npu", folder) for folder in sorted(devices.glob("*.npu"))]
    clocks += [_device("ddr", folder) for folder in sorted(devices.glob("dmc"))]
    return tuple(clocks)


def _cpu(folder: Path) -> Clock:
    now = number(folder / "scaling_cur_freq")  # In kilohertz, as all of cpufreq.
    return Clock(
        of="cpu",
        name=folder.name,
        hertz=now * 1000 if now is not None else None,
        available=_numbers(folder / "scaling_available_frequencies", 1000),
        cap=cap * 1000 if (cap := number(folder / "scaling_max_freq")) is not None else None,
        governor=read(folder / "scaling_governor") or None,
        governors=tuple(read(folder / "scaling_available_governors").split()),
    )


def _device(of: Literal["npu", "ddr"], folder: Path) -> Clock:
    return Clock(
        of=of,
        name=folder.name,
        hertz=number(folder / "cur_freq"),
        available=_numbers(folder / "available_frequencies", 1),
        cap=number(folder / "max_freq"),
        governor=read(folder / "governor") or None,
        governors=tuple(read(folder / "available_governors").split()),
    )


def _numbers(path: Path, factor: int) -> tuple[int, ...]:
    return tuple(sorted(int(word) * factor for word in read(path).split() if word.isdecimal()))
