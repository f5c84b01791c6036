"""A machine is read from the kernel's files, a board or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.hardware import read_big_cores, read_hardware, read_memory, read_soc


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    put(tmp_path, "proc/device-tree/compatible", "radxa,rock-5b\0rockchip,rk3588\0")
    put(tmp_path, "proc/device-tree/model", "Radxa ROCK 5B\0")
    put(tmp_path, "proc/meminfo", "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n")
    for core in range(8):
        put(
            tmp_path,
            f"sys/devices/system/cpu/cpu{core}/cpu_capacity",
            "414" if core < 4 else "1024" if core > 5 else "1010",
        )
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "45384\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/temp", "51000\n")
    return tmp_path


def test_a_board(board: Path) -> None:
    found = read_hardware(board)
    assert (found.soc, found.board, found.cores, found.big_cores) == ("rk3588", "Radxa ROCK 5B", 8, (4, 5, 6, 7))
    assert (found.memory.total, found.memory.available) == (16_384_000_000, 8_192_000_000)
    assert found.temperature == 51.0


def test_the_smaller_package_has_the_same_npu(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/compatible", "friendlyelec,nanopi-r6s\0rockchip,rk3588s\0")
    assert read_soc(tmp_path) == "rk3588"


@pytest.mark.parametrize("compatible", ["rockchip,rk3399\0", "raspberrypi,4\0", ""])
def test_any_other_machine_has_no_known_chip(tmp_path: Path, compatible: str) -> None:
    put(tmp_path, "proc/device-tree/compatible", compatible)
    assert read_soc(tmp_path) is None


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = read_hardware(tmp_path)
    assert (found.soc, found.board, found.cores, found.big_cores, found.temperature) == (None, "", 1, (0,), None)
    assert (found.memory.total, found.memory.available) == (0, 0)


def test_a_control_group_holds_less_than_the_machine(board: Path) -> None:
    put(board, "proc/self/cgroup", "0::/docker/abc\n")
    put(board, "sys/fs/cgroup/docker/memory.max", "2000000000\n")
    put(board, "sys/fs/cgroup/docker/memory.current", "900000000\n")
    put(board, "sys/fs/cgroup/docker/memory.stat", "anon 5\ninactive_file 400000000\n")
    put(board, "sys/fs/cgroup/docker/abc/memory.max", "max\n")
    memory = read_memory(board)
    assert (memory.total, memory.available) == (2_000_000_000, 1_500_000_000)


def test_the_older_control_groups(board: Path) -> None:
    put(board, "proc/self/cgroup", "4:cpu:/x\n3:memory:/\n")
    put(board, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n")
    put(board, "sys/fs/cgroup/memory/memory.usage_in_bytes", "400\n")
    assert read_memory(board).available == 600


def test_clocks_stand_in_for_capacities(tmp_path: Path) -> None:
    for core, clock in enumerate((1_800_000, 1_800_000, 2_400_000)):
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", str(clock))
    assert read_big_cores(tmp_path) == (2,)


def test_this_machine() -> None:
    found = read_hardware()
    assert found.cores >= 1
    assert found.memory.total > 0
