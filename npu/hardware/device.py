"""The NPU as a device: its driver, its node, whether it sleeps, and how busy it is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from npu.hardware.kernel import ROOT, attempt, exists, read

_VERSIONS = ("sys/module/rknpu/version", "proc/rknpu/version", "sys/kernel/debug/rknpu/version")
"""Where the driver tells its version. The last is for root only, the second is there in few kernels."""
_LOADS = ("proc/rknpu/load", "sys/kernel/debug/rknpu/load")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CORE_LOAD = re.compile(r"Core(\d+):\s*(\d+)%")
_LOAD = re.compile(r"load:\s*(\d+)%")
_VENDOR, _MAINLINE = "rknpu", "rocket"


@dataclass(frozen=True, slots=True)
class Driver:
    """What drives the NPU."""

    version: str | None
    """Such as `0.9.8`; None when nobody tells."""
    source: str
    """The file that told, or the reason why there is no version."""
    present: bool
    """Whether the vendor's driver is in this kernel, with a version or without."""
    mainline: bool
    """Whether the kernel's own driver `rocket` has the NPU: the RKLLM runtime cannot use that one."""


@dataclass(frozen=True, slots=True)
class Node:
    """The file through which programs reach the NPU."""

    path: str
    """Such as `/dev/dri/renderD129`; the number differs from board to board."""
    present: bool
    """False where the kernel has the device and its file is not to be seen, as in a container."""
    usable: bool
    """Whether this user may read and write it."""


@dataclass(frozen=True, slots=True)
class Npu:
    """One machine's NPU at one moment."""

    driver: Driver
    node: Node | None
    awake: bool | None
    """False while it is powered off for want of work; None when the kernel does not tell."""
    load: tuple[int, ...] | None
    """Percent of the last second that each core was busy; None when nobody tells."""
    load_source: str
    """The file that told, `asleep`, or the reason why there is no load."""


def read_npu(root: Path = ROOT, cores: int | None = None) -> Npu:
    """Look at the NPU without waking it. `cores` is how many it has, which a sleeping one does not tell."""
    node = _node(root)
    awake = _awake(root)
    load, source = _load(root, awake, cores)
    return Npu(driver=_driver(root, node), node=node, awake=awake, load=load, load_source=source)


def _driver(root: Path, node: Node | None) -> Driver:
    devfreq = any((root / "sys/class/devfreq").glob("*.npu"))
    mainline = exists(root / f"sys/module/{_MAINLINE}") or any(
        _driver_name(device) == _MAINLINE for device in (root / "sys/class/accel").glob("accel*")
    )
    whys = []
    for place in _VERSIONS:
        text, why = attempt(root / place)
        found = _VERSION.search(text)
        if found is not None:
            return Driver(found[0], f"/{place}", present=True, mainline=mainline)
        whys.append(f"/{place} {why or 'holds no version'}")
    present = node is not None or exists(root / "sys/module/rknpu") or (devfreq and not mainline)
    return Driver(None, "; ".join(whys), present=present, mainline=mainline)


def _node(root: Path) -> Node | None:
    # The numbers of render nodes follow the order in which drivers came up, so only the driver's name tells them apart.
    for entry in sorted((root / "sys/class/drm").glob("renderD*")):
        if _driver_name(entry) == _VENDOR:
            return _seen(root, f"dev/dri/{entry.name}")
    return _seen(root, "dev/rknpu") if exists(root / "dev/rknpu") else None


def _seen(root: Path, path: str) -> Node:
    return Node(
        path=f"/{path}",
        present=exists(root / path),
        usable=os.access(root / path, os.R_OK | os.W_OK),
    )


def _driver_name(entry: Path) -> str:
    try:
        return (entry / "device/driver").resolve(strict=True).name.lower()
    except (OSError, RuntimeError):  # The latter is a loop of links, before Python 3.13.
        return ""


def _awake(root: Path) -> bool | None:
    places = (
        *(root / "sys/class/devfreq").glob("*.npu/device/power/runtime_status"),
        *(root / "sys/devices/platform").glob("*.npu/power/runtime_status"),
    )
    states = {read(place) for place in places} & {"active", "resuming", "suspending", "suspended"}
    return states != {"suspended"} if states else None


def _load(root: Path, awake: bool | None, cores: int | None) -> tuple[tuple[int, ...] | None, str]:
    if awake is False:
        return (0,) * (cores or 1), "asleep"
    whys = []
    for place in _LOADS:
        text, why = attempt(root / place)
        each = {int(core): int(percent) for core, percent in _CORE_LOAD.findall(text)}
        one = _LOAD.search(text)
        if each:
            return tuple(each[core] for core in sorted(each)), f"/{place}"
        if one is not None:
            return (int(one[1]),), f"/{place}"
        whys.append(f"/{place} {why or 'holds no load'}")
    return None, "; ".join(whys)
