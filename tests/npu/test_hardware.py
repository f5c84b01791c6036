"""A machine is read from the kernel's files, a board or not."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from npu.hardware import SOCS, Node, Zone, read_big_cores, read_board, read_cores, read_memory, read_npu, read_soc
from npu.model_name import SOCS as NAMED_SOCS
from tests.npu.boards import KINDS, as_nobody, make_board, put, put_in_container


@pytest.mark.parametrize("chip", KINDS)
def test_each_chip(tmp_path: Path, chip: str) -> None:
    """All that is asked of its kernel is told."""
    found, kind = read_board(make_board(tmp_path, chip)), KINDS[chip]
    assert (found.soc, found.soc_source) == (SOCS[chip], "device tree")
    assert (found.model, found.compatible) == (kind.model, kind.compatible)
    assert (found.cores, found.memory.total, found.memory.available) == (
        len(kind.capacities),
        16_384_000_000,
        8_192_000_000,
    )
    assert sum(1 << core for core in found.big_cores) == SOCS[chip].big_cores
    assert (found.npu.driver.version, found.npu.driver.source) == ("0.9.8", "/sys/module/rknpu/version")
    assert (found.npu.driver.present, found.npu.driver.mainline) == (True, False)
    node = found.npu.node
    assert node is not None and (node.present, node.usable) == (True, True)
    assert node.path == (f"/dev/dri/{kind.node}" if kind.node else "/dev/rknpu")
    assert found.npu.awake is True
    assert found.npu.load == {3: (0, 7, 14), 2: (0, 7), 1: (12,)}[kind.npu_cores]
    assert found.npu.load_source == "/sys/kernel/debug/rknpu/load"
    assert found.temperatures == {"soc-thermal": 45.384, "npu-thermal": 51.0}
    assert found.zones == (Zone("soc-thermal", 45.384, 85.0), Zone("npu-thermal", 51.0, None))
    assert found.throttled == () and not any(clock.capped for clock in found.clocks)
    assert found.open_files is not None and (found.open_files.soft, found.open_files.hard) == (1024, 524288)
    assert (found.container, found.device_tree_hidden) == (False, False)


@pytest.mark.parametrize("chip", KINDS)
def test_the_clocks_of_each_chip(tmp_path: Path, chip: str) -> None:
    """In hertz, whatever the kernel's file counts in; those of the display are left out."""
    kind = KINDS[chip]
    make_board(tmp_path, chip)
    put(tmp_path, "sys/class/devfreq/fb000000.gpu/governor", "simple_ondemand")
    clocks = {clock.name: clock for clock in read_board(tmp_path).clocks}
    assert list(clocks) == [*(f"policy{first}" for first in kind.policies), kind.npu, "dmc"]
    cpu, npu = clocks["policy0"], clocks[kind.npu]
    assert (cpu.of, cpu.hertz, cpu.governor) == ("cpu", 1_200_000_000, "ondemand")
    assert cpu.available == (408_000_000, 1_200_000_000, 1_800_000_000)
    assert cpu.governors == ("ondemand", "userspace", "performance", "schedutil")
    assert (npu.of, npu.hertz, npu.available) == ("npu", kind.npu_hertz[0], kind.npu_hertz)
    assert clocks["dmc"].of == "ddr"


def test_what_heat_does_to_clocks_is_told(tmp_path: Path) -> None:
    """A fan that turns holds no clock down, and a limit that a driver tells for want of one is none."""
    make_board(tmp_path, "rk3588")
    put(tmp_path, "sys/class/thermal/cooling_device1/cur_state", "2\n")
    put(tmp_path, "sys/class/devfreq/fdab0000.npu/max_freq", "700000000\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/trip_point_0_type", "passive\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/trip_point_0_temp", "-274000\n")
    found = read_board(tmp_path)
    assert found.throttled == ("thermal-devfreq-1",)
    assert [clock.name for clock in found.clocks if clock.capped] == ["fdab0000.npu"]
    assert [zone.limit for zone in found.zones] == [85.0, None]


def test_every_chip_a_model_can_be_made_for_is_in_the_table() -> None:
    """The names in files and manifests are those of the table, and the two packages of one chip are one."""
    assert {read_soc(Path("/nonexistent"), name) for name in NAMED_SOCS} == set(SOCS)


def test_what_each_chip_runs() -> None:
    """As the vendor's converter offers it."""
    assert SOCS["rk3588"].runs("W8A8_G128") and not SOCS["rk3588"].runs("w4a16")
    assert SOCS["rk3576"].runs("W4A16") and not SOCS["rk3576"].runs("w8a8_g128")
    assert SOCS["rk3562"].runs("w4a8_g32") and not SOCS["rk3562"].runs("w4a16")
    assert SOCS["rv1126b"].runs("w4a16_g64")
    assert all(soc.runs("FP16") and soc.runs("w8a8") for soc in SOCS.values())


def test_a_container_hides_the_tree_and_the_node(tmp_path: Path) -> None:
    """The chip is still known, by the address of its NPU, and what is hidden is told."""
    put_in_container(make_board(tmp_path, "rk3588"))
    found = read_board(tmp_path)
    assert (found.soc, found.soc_source) == (SOCS["rk3588"], "NPU address")
    assert (found.container, found.device_tree_hidden, found.model) == (True, True, "")
    node = found.npu.node
    assert node is not None and (node.path, node.present, node.usable) == ("/dev/dri/renderD129", False, False)
    assert found.npu.driver.version == "0.9.8"
    assert found.npu.load is None and "is not there" in found.npu.load_source


def test_an_empty_root(tmp_path: Path) -> None:
    """Nothing is told, and nothing fails."""
    found = read_board(tmp_path)
    assert (found.soc, found.soc_source, found.model, found.compatible) == (None, "", "", ())
    assert (found.cores, found.big_cores, found.clocks, found.temperatures) == (1, (0,), (), {})
    assert (found.memory.total, found.memory.available, found.open_files) == (0, 0, None)
    assert (found.npu.node, found.npu.awake, found.npu.load) == (None, None, None)
    assert (found.npu.driver.version, found.npu.driver.present) == (None, False)
    assert (found.container, found.device_tree_hidden) == (False, False)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Each is as good as absent, and the reason is kept where somebody will ask for it."""
    make_board(tmp_path, "rk3576")
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]:
        path.unlink()
        path.mkdir()  # Root may read any file, but nobody reads a folder as one.
    found = read_board(tmp_path)
    assert (found.soc_source, found.model, found.open_files, found.temperatures) == ("NPU address", "", None, {})
    assert {(clock.governor, clock.hertz, clock.available) for clock in found.clocks} == {(None, None, ())}
    assert found.npu.driver.version is None and found.npu.driver.present
    assert "/sys/module/rknpu/version cannot be read (Is a directory)" in found.npu.driver.source
    assert found.npu.load is None and "/proc/rknpu/load is not there" in found.npu.load_source


def test_noise_instead_of_facts(tmp_path: Path) -> None:
    """Whatever a kernel writes there, it is no figure unless it is one."""
    make_board(tmp_path, "rk3588")
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]:
        path.write_bytes(b"\xff\xfe-\0 NPU load:\n\n\xb2")
    found = read_board(tmp_path)
    assert (found.npu.driver.version, found.npu.load, found.temperatures) == (None, None, {})
    assert "holds no version" in found.npu.driver.source


def test_the_driver_is_asked_in_order(tmp_path: Path) -> None:
    """First where everybody may read, last where root only may."""
    make_board(tmp_path, "rk3588", driver="0.9.3")
    (tmp_path / "sys/module/rknpu/version").unlink()
    assert read_npu(tmp_path).driver.source == "/sys/kernel/debug/rknpu/version"
    put(tmp_path, "proc/rknpu/version", "RKNPU driver: v0.9.7\n")
    driver = read_npu(tmp_path).driver
    assert (driver.version, driver.source) == ("0.9.7", "/proc/rknpu/version")


def test_the_mainline_driver(tmp_path: Path) -> None:
    """It has the NPU, and the vendor's driver is not there."""
    (tmp_path / "sys/bus/platform/drivers/rocket").mkdir(parents=True)
    (tmp_path / "sys/class/accel/accel0/device").mkdir(parents=True)
    (tmp_path / "sys/class/accel/accel0/device/driver").symlink_to("../../../../bus/platform/drivers/rocket")
    put(tmp_path, "proc/device-tree/compatible", "radxa,rock-5b\0rockchip,rk3588\0")
    driver = read_board(tmp_path).npu.driver
    assert (driver.mainline, driver.present, driver.version) == (True, False, None)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every path that is opened during the test, whoever opens it."""
    paths: list[str] = []
    listening = True

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open":
            paths.append(str(arguments[0]))

    sys.addaudithook(hear)  # There is no way to take it off again.
    yield paths
    listening = False


@pytest.mark.parametrize("awake", [True, False])
@pytest.mark.parametrize("chip", KINDS)
def test_the_npu_is_let_sleep(tmp_path: Path, chip: str, awake: bool, opened: list[str]) -> None:
    """The file whose reading wakes it is never opened, and while it sleeps neither is its load, which is nothing then."""
    make_board(tmp_path, chip, awake=awake)
    opened.clear()
    found = read_board(tmp_path)
    names = {path.removeprefix(f"{tmp_path}/") for path in opened}
    assert "proc/meminfo" in names
    assert not {name for name in names if name.startswith("sys/kernel/debug/") and not name.endswith("rknpu/load")}
    assert ("sys/kernel/debug/rknpu/load" in names) == awake == found.npu.awake
    if not awake:
        assert (found.npu.load, found.npu.load_source) == ((0,) * KINDS[chip].npu_cores, "asleep")


def test_a_node_closed_to_this_user() -> None:
    """The answer is about the user who asks, so it is asked by one who is not root."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_board(Path(folder), "rk3588")
        root.chmod(0o755)
        (root / "dev/dri/renderD129").chmod(0o600 if os.geteuid() == 0 else 0o000)
        assert as_nobody(lambda: repr(read_npu(root).node)) == repr(Node("/dev/dri/renderD129", True, False))
        (root / "dev/dri/renderD129").chmod(0o666)
        assert as_nobody(lambda: repr(read_npu(root).node)) == repr(Node("/dev/dri/renderD129", True, True))


def test_a_driver_that_tells_root_only() -> None:
    """The reason says so."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_board(Path(folder), "rk3588")
        (root / "sys/module/rknpu/version").unlink()
        root.chmod(0o755)
        (root / "sys/kernel/debug").chmod(0o700 if os.geteuid() == 0 else 0o000)
        told = as_nobody(lambda: read_npu(root).driver.source)
        (root / "sys/kernel/debug").chmod(0o700)
    assert told.endswith("/sys/kernel/debug/rknpu/version may be read by root only")


@pytest.mark.parametrize("compatible", ["rockchip,rk3399\0", "raspberrypi,4\0", ""])
def test_any_other_machine_has_no_known_chip(tmp_path: Path, compatible: str) -> None:
    put(tmp_path, "proc/device-tree/compatible", compatible)
    assert read_soc(tmp_path) is None


def test_the_smaller_package_has_the_same_npu(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/compatible", "friendlyelec,nanopi-r6s\0rockchip,rk3588s\0")
    assert read_soc(tmp_path) == "rk3588"


def test_the_chip_can_be_named(tmp_path: Path) -> None:
    """Against what is seen, in any case; a name that is none is refused with those there are."""
    found = read_board(make_board(tmp_path, "rk3588"), soc="RK3576")
    assert (found.soc, found.soc_source) == (SOCS["rk3576"], "setting")
    with pytest.raises(ValueError, match=r"rk3399.*rk3588, rk3583, rk3576"):
        read_board(tmp_path, soc="rk3399")


def test_a_control_group_holds_less_than_the_machine(tmp_path: Path) -> None:
    make_board(tmp_path, "rk3588")
    put(tmp_path, "proc/self/cgroup", "0::/docker/abc\n")
    put(tmp_path, "sys/fs/cgroup/docker/memory.max", "2000000000\n")
    put(tmp_path, "sys/fs/cgroup/docker/memory.current", "900000000\n")
    put(tmp_path, "sys/fs/cgroup/docker/memory.stat", "anon 5\ninactive_file 400000000\n")
    put(tmp_path, "sys/fs/cgroup/docker/abc/memory.max", "max\n")
    memory = read_memory(tmp_path)
    assert (memory.total, memory.available) == (2_000_000_000, 1_500_000_000)


def test_the_older_control_groups(tmp_path: Path) -> None:
    make_board(tmp_path, "rk3588")
    put(tmp_path, "proc/self/cgroup", "4:cpu:/x\n3:memory:/\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", "400\n")
    assert read_memory(tmp_path).available == 600


def test_clocks_stand_in_for_capacities(tmp_path: Path) -> None:
    for core, clock in enumerate((1_800_000, 1_800_000, 2_400_000)):
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", str(clock))
    assert read_big_cores(tmp_path) == (2,)


def test_this_machine() -> None:
    found = read_board()
    assert found.cores == read_cores() >= 1
    assert found.memory.total > 0
    assert found.open_files is not None and found.open_files.hard >= found.open_files.soft > 0
