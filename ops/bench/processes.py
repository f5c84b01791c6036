"""What the processes of a service use: time on the CPU, memory, bytes written."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

CPUCLOCK_SCHED = 2
"""The kernel's clock of the time that all threads of a process, ended ones included, were on a CPU."""


@dataclass(frozen=True, slots=True)
class Member:
    """One process of the service. `role` is `up`, `guard`, `store`, `api`, `board`, `parent`, `child`, `server`
    (llama.cpp's) or `renderer`."""

    pid: int
    role: str
    model: str = ""
    """Of a worker's processes: which model's."""


def members(up: int) -> list[Member]:
    """Every process below the `rockchipllama up` with this id, itself included."""
    root = psutil.Process(up)
    found = {up: Member(up, "up")}
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            found[process.pid] = _member(process, process.cmdline(), found.get(process.ppid()))
    return list(found.values())


def _member(process: psutil.Process, words: list[str], parent: Member | None) -> Member:
    pid = process.pid
    if process.name().startswith(("valkey-server", "redis-server")):  # it overwrites its own command line
        return Member(pid, "store")
    if any(word.endswith("template_process.py") for word in words):
        return Member(pid, "renderer", parent.model if parent is not None else "")
    if any(word.endswith("/llamacpp/host.py") for word in words):
        return Member(pid, "server", parent.model if parent is not None else "")
    if words[-2] == "worker":
        return Member(pid, "child" if parent is not None and parent.role == "parent" else "parent", words[-1])
    return Member(pid, words[-1] if words[-1] in ("api", "board") else "guard")


def of_one_model(found: list[Member], model: str) -> list[Member]:
    """The service as if it served that model alone."""
    return [member for member in found if member.model in ("", model)]


def cpu_seconds(pid: int) -> float:
    """Seconds a process has been on a CPU, to the nanosecond where the kernel tells, 0 when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)
    except OSError:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            return float(times.user + times.system)
    return 0.0


class CpuMeter:
    """Time on the CPU by role since it was made, and how busy everybody else kept the machine meanwhile."""

    def __init__(self, counted: list[Member]) -> None:
        self._counted = counted
        self._before = {member.pid: cpu_seconds(member.pid) for member in counted}
        self._machine = _busy_seconds()
        self._own = time.process_time()
        self._begun = time.monotonic()

    def read(self) -> dict[str, float]:
        """Seconds by role; `all` is their sum, `elapsed` the time that passed, `others` the CPU of other programs."""
        used: dict[str, float] = defaultdict(float)
        for member in self._counted:
            used[member.role] += cpu_seconds(member.pid) - self._before[member.pid]
        used["all"] = sum(used.values())
        others = _busy_seconds() - self._machine - used["all"] - (time.process_time() - self._own)
        return {**used, "elapsed": time.monotonic() - self._begun, "others": max(0.0, others)}


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + getattr(times, "softirq", 0) + getattr(times, "irq", 0))


def pss(found: list[Member], *roles: str) -> float:
    """Proportional set size of the processes with these roles, in MB: shared pages count by their share."""
    total = 0
    for member in found:
        if member.role in roles:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += psutil.Process(member.pid).memory_full_info().pss
    return total / 1e6


def size(folder: Path) -> int:
    """Bytes in all files below `folder`."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def block_writes(found: list[Member]) -> int:
    """Bytes these processes sent towards the block device, page by page; 0 where /proc does not tell."""
    total = 0
    for member in found:
        with contextlib.suppress(OSError):
            fields = dict(line.split(": ") for line in Path(f"/proc/{member.pid}/io").read_text().splitlines())
            total += int(fields["write_bytes"])
    return total


def machine() -> dict[str, str | int | float]:
    """What a figure cannot be compared without. Looks for two seconds how busy other programs keep the machine."""
    model = ""
    with contextlib.suppress(OSError, IndexError):
        model = Path("/proc/cpuinfo").read_text().split("model name", 1)[1].split(":", 1)[1].splitlines()[0].strip()
    name = os.uname()
    return {
        "architecture": name.machine,
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": psutil.virtual_memory().total // 10**6,
        "kernel": name.release,
        "busy_percent_at_start": round(psutil.cpu_percent(interval=2.0), 1),
    }
