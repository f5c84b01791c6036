"""Boards made of files: what the kernel of each would tell, beneath a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """What differs between the chips."""

    model: str
    compatible: tuple[str, ...]
    npu: str
    npu_cores: int
    capacities: tuple[int, ...]
    policies: tuple[int, ...]
    npu_hertz: tuple[int, ...]
    node: str


_FOUR_SAME = (1024,) * 4

KINDS = {
    "rk3588": Kind(
        model="Radxa ROCK 5B",
        compatible=("radxa,rock-5b", "rockchip,rk3588"),
        npu="fdab0000.npu",
        npu_cores=3,
        capacities=(414, 414, 414, 414, 1010, 1010, 1024, 1024),
        policies=(0, 4, 6),
        npu_hertz=(300_000_000, 700_000_000, 1_000_000_000),
        node="renderD129",
    ),
    "rk3576": Kind(
        model="ArmSoM Sige5",
        compatible=("armsom,sige5", "rockchip,rk3576"),
        npu="27700000.npu",
        npu_cores=2,
        capacities=(530, 530, 530, 530, 1024, 1024, 1024, 1024),
        policies=(0, 4),
        npu_hertz=(300_000_000, 950_000_000),
        node="renderD129",
    ),
    "rk3562": Kind(
        model="Rockchip RK3562 EVB",
        compatible=("rockchip,rk3562-evb2", "rockchip,rk3562"),
        npu="ff300000.npu",
        npu_cores=1,
        capacities=_FOUR_SAME,
        policies=(0,),
        npu_hertz=(300_000_000, 1_000_000_000),
        node="",  # Built without DRM: the node is /dev/rknpu.
    ),
    "rv1126b": Kind(
        model="Rockchip RV1126B EVB",
        compatible=("rockchip,rv1126b-evb1", "rockchip,rv1126b"),
        npu="22000000.npu",
        npu_cores=1,
        capacities=_FOUR_SAME,
        policies=(0,),
        npu_hertz=(396_000_000, 950_000_000),
        node="renderD128",
    ),
}
"""One board for each chip, as its kernel would show it."""


def put(root: Path, path: str, text: str) -> Path:
    """Write one of the kernel's files."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    return root / path


def link(root: Path, path: str, target: str) -> None:
    """Make one of the kernel's links; `target` is relative to it, so that it stays beneath the root."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(target)


def make_board(root: Path, chip: str, *, driver: str = "0.9.8", awake: bool = True, governor: str = "ondemand") -> Path:
    """Build the board of one chip with a driver that works, and return its root."""
    kind = KINDS[chip]
    tree = "sys/firmware/devicetree/base"
    put(root, f"{tree}/compatible", "".join(f"{entry}\0" for entry in kind.compatible))
    put(root, f"{tree}/model", f"{kind.model}\0")
    link(root, "proc/device-tree", "../" + tree)
    put(root, "proc/meminfo", "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n")
    put(root, "proc/self/limits", f"{'Limit':26}Soft Limit\n{'Max open files':26}1024{'':17}524288{'':15}files\n")
    put(root, "sys/class/thermal/thermal_zone0/type", "soc-thermal\n")
    put(root, "sys/class/thermal/thermal_zone0/temp", "45384\n")
    for trip, (kind_of_trip, limit) in enumerate((("passive", 75), ("passive", 85), ("critical", 115))):
        put(root, f"sys/class/thermal/thermal_zone0/trip_point_{trip}_type", f"{kind_of_trip}\n")
        put(root, f"sys/class/thermal/thermal_zone0/trip_point_{trip}_temp", f"{limit}000\n")
    for device, name in enumerate(("thermal-cpufreq-0", "thermal-devfreq-1", "pwm-fan")):
        put(root, f"sys/class/thermal/cooling_device{device}/type", f"{name}\n")
        put(root, f"sys/class/thermal/cooling_device{device}/cur_state", f"{3 * (name == 'pwm-fan')}\n")
    put(root, "sys/class/thermal/thermal_zone1/type", "npu-thermal\n")
    put(root, "sys/class/thermal/thermal_zone1/temp", "51000\n")
    _cpus(root, kind, governor)
    _npu(root, kind, driver, awake, governor)
    return root


def put_in_container(root: Path) -> None:
    """What is left of a board in a container that was started without flags."""
    shutil.rmtree(root / "sys/firmware")
    (root / "sys/firmware").mkdir()  # Masked by an empty folder; the link in /proc leads nowhere now.
    shutil.rmtree(root / "dev")
    (root / "dev").mkdir()
    shutil.rmtree(root / "sys/kernel/debug")
    put(root, ".dockerenv", "")


def as_nobody(look: Callable[[], str]) -> str:
    """What `look` says to a user without rights: the one who runs the tests, unless that is root."""
    if os.geteuid() != 0:
        return look()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, look().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


def _cpus(root: Path, kind: Kind, governor: str) -> None:
    for core, capacity in enumerate(kind.capacities):
        put(root, f"sys/devices/system/cpu/cpu{core}/cpu_capacity", f"{capacity}\n")
    for first in kind.policies:
        folder = f"sys/devices/system/cpu/cpufreq/policy{first}"
        put(root, f"{folder}/scaling_governor", f"{governor}\n")
        put(root, f"{folder}/scaling_available_governors", "ondemand userspace performance schedutil \n")
        put(root, f"{folder}/scaling_available_frequencies", "408000 1200000 1800000 \n")
        put(root, f"{folder}/scaling_cur_freq", "1200000\n")
        put(root, f"{folder}/scaling_max_freq", "1800000\n")


def _npu(root: Path, kind: Kind, driver: str, awake: bool, governor: str) -> None:
    for name, governors in ((kind.npu, "rknpu_ondemand userspace performance"), ("dmc", "dmc_ondemand performance")):
        device = f"sys/devices/platform/{name}"
        put(root, f"{device}/devfreq/{name}/governor", f"{governor}\n")
        put(root, f"{device}/devfreq/{name}/available_governors", f"{governors}\n")
        put(root, f"{device}/devfreq/{name}/cur_freq", f"{kind.npu_hertz[0]}\n")
        put(
            root,
            f"{device}/devfreq/{name}/available_frequencies",
            " ".join(str(hertz) for hertz in reversed(kind.npu_hertz)),
        )
        put(root, f"{device}/devfreq/{name}/max_freq", f"{kind.npu_hertz[-1]}\n")
        link(root, f"{device}/devfreq/{name}/device", "../..")
        link(root, f"sys/class/devfreq/{name}", f"../../devices/platform/{name}/devfreq/{name}")
    device = f"sys/devices/platform/{kind.npu}"
    put(root, f"{device}/power/runtime_status", "active\n" if awake else "suspended\n")
    (root / "sys/bus/platform/drivers/RKNPU").mkdir(parents=True)
    link(root, f"{device}/driver", "../../../bus/platform/drivers/RKNPU")
    debug = "sys/kernel/debug/rknpu"
    put(root, f"{debug}/version", f"RKNPU driver: v{driver}\n")
    each = "".join(f" Core{core}: {7 * core:2d}%," for core in range(kind.npu_cores))
    put(root, f"{debug}/load", f"NPU load: {each}\n" if kind.npu_cores > 1 else "NPU load: 12%\n")
    # Whoever reads this one fails: it is a folder, and on a board reading it powers the NPU on.
    (root / debug / "freq").mkdir()
    put(root, "sys/module/rknpu/version", f"{driver}\n")
    if kind.node:
        put(root, f"dev/dri/{kind.node}", "")
        link(root, f"sys/class/drm/{kind.node}/device", f"../../../devices/platform/{kind.npu}")
        # The display has a node, too, with another driver.
        (root / "sys/bus/platform/drivers/panthor").mkdir(parents=True)
        (root / "sys/class/drm/renderD127/device").mkdir(parents=True)
        link(root, "sys/class/drm/renderD127/device/driver", "../../../../bus/platform/drivers/panthor")
    else:
        put(root, "dev/rknpu", "")
