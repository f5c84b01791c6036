"""Checks of what the service itself stands on: Python, disk, Redis, settings."""

from __future__ import annotations

from collections.abc import Iterator

from ops.doctor.facts import Facts
from ops.doctor.finding import Finding, Level
from ops.program import program

LITTLE_DISK = 1_000_000_000
"""Bytes: the queue's file and the logs fit, and not much more."""
NO_DISK = 50_000_000
"""Bytes: the queue's file may not."""


def check_python(facts: Facts) -> Iterator[Finding]:
    """Whether the interpreter is one that the packages are made for."""
    python = facts.python
    version = f"{python.version[0]}.{python.version[1]}"
    if python.bits != 64:
        yield Finding(
            Level.WARNING,
            "python_32_bit",
            f"Python {version} is a {python.bits}-bit program, and llama.cpp's package is for 64 bits.",
            "Many boards run a 32-bit system on a 64-bit chip. Install a 64-bit (arm64) image to run GGUF models.",
            "getconf LONG_BIT",
        )
    elif python.libc != "glibc":
        yield Finding(
            Level.WARNING,
            "python_libc",
            "This system's C library is not glibc, and neither llama.cpp's package nor Rockchip's runtime is made for it.",
            "Alpine is such a system. Use one that has glibc, such as Debian or Ubuntu.",
            "ldd --version",
        )
    elif not python.private:
        yield Finding(
            Level.NOTE,
            "python_shared",
            f"Python {version} is the system's own, and not that of a virtual environment.",
            "Its packages may be of other versions than those this service was tested with.",
            f"ops/setup && {program()} doctor",
        )
    else:
        yield Finding(Level.OK, "python", f"Python {version}, in a virtual environment of its own.")


def check_disk(facts: Facts) -> Iterator[Finding]:
    """Whether the service can keep its files."""
    disk = facts.disk
    if not disk.writable:
        yield Finding(
            Level.PROBLEM,
            "disk_closed",
            f"This user may not write to {disk.path}, where the service keeps its files.",
            "The service would not start. Give the folder to the user who runs it, or name another with `--data-dir`.",
            f'sudo chown -R "$USER" {disk.path}',
        )
    elif disk.free is not None and disk.free < LITTLE_DISK:
        yield Finding(
            Level.PROBLEM if disk.free < NO_DISK else Level.WARNING,
            "disk_full",
            f"{disk.free / 1e6:.0f} MB are free where the service keeps its files ({disk.path}).",
            "When nothing is left, no job can be accepted: a job that is accepted is written down first.",
            f"df -h {disk.path}",
        )
    else:
        told = f"{disk.free / 1e9:.1f} GB are free in" if disk.free is not None else "The service may write to"
        yield Finding(Level.OK, "disk", f"{told} {disk.path}.")


def check_redis(facts: Facts) -> Iterator[Finding]:
    """Whether the Redis that is configured answers."""
    if facts.redis is None:
        return
    if facts.redis.error:
        yield Finding(
            Level.PROBLEM,
            "redis_away",
            f"Redis does not answer at {facts.redis.url}: {facts.redis.error}.",
            "Every job goes through it. Start it, mend `redis_url`, or leave that setting out: `up` then runs a queue of "
            "its own.",
            f"{program()} settings",
        )
    else:
        yield Finding(Level.OK, "redis", f"Redis answers at {facts.redis.url}.")


def check_settings(facts: Facts) -> Iterator[Finding]:
    """Whether something was set that is no setting, or means nothing."""
    for sentence in facts.unknown_settings:
        yield Finding(Level.WARNING, "setting_unknown", sentence, "It has no effect.", "")
    for sentence in facts.dangling:
        yield Finding(
            Level.WARNING,
            "name_dangling",
            sentence,
            "It has no effect, unless another board on the same Redis has such a model.",
            f"{program()} settings",
        )
