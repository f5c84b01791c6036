"""A control group that gives what runs in it a share of one core: a stand-in for a small board."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from npu.errors import NpuError
from npu.hardware.kernel import ROOT, read

THIRD = 1 / 3
PERIOD = 10_000
"""Microseconds in which a share is used up and given anew. The kernel's default of ten times as many would halt a service for
so long that it resembles a stutter, and not a slow core."""
LEAVING = 10.0
"""Seconds that processes may take to be gone from a group once they have ended."""


class NotConfined(NpuError):
    """Raised where no control group can be had; the message is for the user."""


class Confinement:
    """The group, for the length of the block. Entering raises `NotConfined`."""

    def __init__(self, share: float, root: Path = ROOT) -> None:
        """`share` is of one core. `root` is another tree, for tests."""
        self._quota = round(share * PERIOD)
        self._root = root
        self._group: Path | None = None

    def __enter__(self) -> Confinement:
        whys = []
        for parent, settings in _places(self._root, self._quota):
            # A benchmark starts a second service beside the first.
            group = parent / f"rockchipllama-bench-{os.getpid()}-{secrets.token_hex(4)}"
            try:
                group.mkdir()
            except OSError as error:
                whys.append(f"{parent}: {error.strerror}")
                continue
            self._group = group
            try:
                for name, value in settings.items():
                    (group / name).write_text(value)
                return self
            except OSError as error:
                self._leave()
                whys.append(f"{group / (error.filename or '')}: {error.strerror}")
        raise NotConfined(
            "The service cannot be confined to a share of a core, since no control group for the CPU can be made "
            f"({'; '.join(whys) or 'the kernel shows none'}). Run it as root, on the machine itself or in a container with "
            "`--privileged`."
        )

    def __exit__(self, *exc: object) -> None:
        self._leave()

    def command(self, words: Sequence[str]) -> list[str]:
        """The same command, run in the group with all it starts."""
        assert self._group is not None
        return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._group), *words]

    def halts(self) -> int:
        """How often the group has used up its share and had to wait."""
        assert self._group is not None
        for line in read(self._group / "cpu.stat").splitlines():
            name, _, count = line.partition(" ")
            if name == "nr_throttled":
                return int(count)
        return 0

    def _leave(self) -> None:
        group, self._group = self._group, None
        deadline = time.monotonic() + LEAVING
        while group is not None:
            try:
                group.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _places(root: Path, quota: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """Where a group could be made, and what is to be written into it: both generations of the interface."""
    base = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own = path.lstrip("/")
        if not controllers:
            settings = {"cpu.max": f"{quota} {PERIOD}"}
            # A group that has processes may have no further ones below it, so this becomes a neighbour of our own.
            for place in (base / own, (base / own).parent):
                if place.is_relative_to(base) and "cpu" in read(place / "cgroup.subtree_control").split():
                    yield place, settings
        elif "cpu" in controllers.split(","):
            yield (
                base / controllers / own,
                {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(quota)},
            )
