"""What the kernel's sensors say of heat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from npu.hardware.kernel import ROOT, number, read

_LEAST_LIMIT = 40.0
"""Degrees Celsius below which a limit is none: some drivers tell 0 or less for one that is not set."""


@dataclass(frozen=True, slots=True)
class Zone:
    """One sensor at one moment."""

    name: str
    """Such as `npu-thermal`."""
    celsius: float
    limit: float | None
    """Degrees Celsius that the kernel holds the chip to by lowering clocks; None where no limit is set for this sensor."""


def read_zones(root: Path = ROOT) -> tuple[Zone, ...]:
    """Every sensor that can be read. Those that share a name are told apart by the kernel's number."""
    found: dict[str, Zone] = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        thousandths = number(folder / "temp")
        if thousandths is not None:
            name = read(folder / "type") or folder.name
            name = name if name not in found else f"{name} ({folder.name})"
            found[name] = Zone(name, thousandths / 1000, _limit(folder))
    return tuple(found.values())


def _limit(zone: Path) -> float | None:
    # Where there are several, the lower ones only say from when on the kernel looks more often.
    passive = [
        celsius
        for kind in zone.glob("trip_point_*_type")
        if read(kind) == "passive"
        and (celsius := (number(zone / f"{kind.name[:-5]}_temp") or 0) / 1000) >= _LEAST_LIMIT
    ]
    return max(passive, default=None)
