"""The control group in which `bench overhead` confines the service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ops.bench.confinement import Confinement, NotConfined
from tests.npu.boards import put
from tests.stack import eventually


def test_either_generation_of_control_groups_is_used(tmp_path: Path) -> None:
    """As a neighbour of the own group where the kernel has one tree, else below the own one in the tree for the CPU."""
    one, many = tmp_path / "one", tmp_path / "many"
    put(one, "proc/self/cgroup", "0::/user/bench\n")
    put(one, "sys/fs/cgroup/user/cgroup.subtree_control", "cpuset cpu memory\n")
    put(one, "sys/fs/cgroup/user/bench/cgroup.subtree_control", "\n")
    put(many, "proc/self/cgroup", "4:memory:/x\n1:cpu,cpuacct:/y\n0::/\n")
    put(many, "sys/fs/cgroup/cpu,cpuacct/y/tasks", "")
    for root, place, files in (
        (one, "user", {"cpu.max": "3333 10000"}),
        (many, "cpu,cpuacct/y", {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "3333"}),
    ):
        confinement = Confinement(1 / 3, root)
        confinement.__enter__()
        [group] = (root / "sys/fs/cgroup" / place).glob("rockchipllama-bench-*")
        assert {path.name: path.read_text() for path in group.iterdir()} == files
        assert str(group) in confinement.command(["true"])


def test_one_process_may_have_several(tmp_path: Path) -> None:
    """As a benchmark that starts a service again beside the one it measures."""
    put(tmp_path, "proc/self/cgroup", "0::/bench\n")
    put(tmp_path, "sys/fs/cgroup/cgroup.subtree_control", "cpu\n")
    commands = []
    for _ in range(2):
        confinement = Confinement(1 / 3, tmp_path)
        confinement.__enter__()
        commands.append(confinement.command(["true"]))
    assert commands[0] != commands[1]


def test_a_machine_without_them_is_refused_in_words(tmp_path: Path) -> None:
    """With what to do."""
    put(tmp_path, "proc/self/cgroup", "0::/\n")
    with pytest.raises(NotConfined, match=r"the kernel shows none.*Run it as root"), Confinement(1 / 3, tmp_path):
        pass


def test_what_runs_in_it_has_to_wait() -> None:
    """The real kernel halts a program that wants more, with what it starts; nothing is left of the group."""
    try:
        with Confinement(0.1) as confinement:
            command = confinement.command(["/bin/sh", "-c", f'"{sys.executable}" -c "while True: pass"; true'])
            with subprocess.Popen(command, start_new_session=True) as busy:
                try:
                    eventually(confinement.halts, what="a program that had to wait")
                    group = Path(command[3])
                    running = (group / "cgroup.procs").read_text().split()
                    assert len(running) == 2
                finally:
                    os.killpg(busy.pid, signal.SIGKILL)
    except NotConfined as refused:
        pytest.skip(str(refused))
    assert not group.exists()
