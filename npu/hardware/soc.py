"""The chips whose NPU runs language models, and what each can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npu.hardware.kernel import ROOT, read

_W4A16 = ("w4a16", "w4a16_g32", "w4a16_g64", "w4a16_g128")
_W8A8 = ("w8a8", "w8a8_g128", "w8a8_g256", "w8a8_g512")


@dataclass(frozen=True, slots=True)
class Soc:
    """One chip."""

    name: str
    """As the converter and this project write it, such as `rk3588`."""
    npu_cores: int
    """A model may be converted for as many, or for fewer."""
    dtypes: tuple[str, ...]
    """The quantizations its NPU runs."""
    big_cores: int
    """The fast CPU cores, one bit each from core 0 up; all of them where all are alike."""
    npu_address: str | None = None
    """Where its NPU lies, by which the kernel names the device; None when that does not tell it from another chip."""

    def runs(self, dtype: str) -> bool:
        """Whether its NPU runs weights of this type: a quantization, in any case, or `fp16`, which is none."""
        return dtype.lower() in ("fp16", *self.dtypes)


SOCS: Mapping[str, Soc] = {
    soc.name: soc
    for soc in (
        Soc("rk3588", 3, _W8A8, 0xF0, "fdab0000"),
        # The same chip with one NPU core switched off.
        Soc("rk3583", 2, _W8A8, 0xF0),
        Soc("rk3576", 2, (*_W4A16, "w8a8"), 0xF0, "27700000"),
        Soc("rk3562", 1, (*_W4A16[1:], "w4a8_g32", "w8a8"), 0x0F, "ff300000"),
        Soc("rv1126b", 1, (*_W4A16, "w8a8"), 0x0F, "22000000"),
    )
}
"""Every chip we know, by its name."""

_SAME = {"rk3588s": "rk3588"}
"""The same chip in a package with fewer pins."""


def soc_named(name: str) -> Soc:
    """The chip of that name, in any case. Raises `ValueError` with the names there are."""
    known = SOCS.get(_SAME.get(name.lower(), name.lower()))
    if known is None:
        raise ValueError(f"there is no chip {name!r} here; there are {', '.join(SOCS)}")
    return known


def read_compatible(root: Path = ROOT) -> tuple[str, ...]:
    """What the machine calls itself in the device tree, such as `radxa,rock-5b` and `rockchip,rk3588`."""
    return tuple(entry for entry in read(root / "proc/device-tree/compatible").split("\0") if entry)


def find_soc(root: Path = ROOT, named: str | None = None) -> tuple[Soc | None, str]:
    """The chip, and how it is known: `setting`, `device tree`, `NPU address`, or nothing at all.

    `named` wins over all that is seen; it raises `ValueError` when it is no chip we know.
    """
    if named:
        return soc_named(named), "setting"
    for entry in read_compatible(root):
        vendor, _, chip = entry.partition(",")
        soc = SOCS.get(_SAME.get(chip, chip)) if vendor == "rockchip" else None
        if soc is not None:
            return soc, "device tree"
    # Containers hide the device tree; the devices of the kernel they see all the same.
    for device in sorted((root / "sys/class/devfreq").glob("*.npu")):
        for soc in SOCS.values():
            if soc.npu_address == device.name.removesuffix(".npu"):
                return soc, "NPU address"
    return None, ""


def read_soc(root: Path = ROOT, named: str | None = None) -> str | None:
    """The chip's name; None on a machine that has no NPU we know. Raises `ValueError` as `find_soc` does."""
    soc, _ = find_soc(root, named)
    return soc.name if soc is not None else None
