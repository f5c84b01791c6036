"""A unit of systemd: what is started, as whom, and what it may reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PARTS: Mapping[str, str] = {
    "up": "RockchipLlama: everything on this machine, or the board of the service that it joined",
    "api": "RockchipLlama's API",
    "board": "A board of RockchipLlama",
}
"""What can be a unit: a command of `rockchipllama`, and what people read of it."""

# Comments stand on lines of their own: systemd takes those behind a value for a part of it.
_UNIT = """\
# Written by `rockchipllama service install`. Lines of your own go into a drop-in: systemctl edit {name}
[Unit]
Description={description}
# An address of its own to listen on, and a Redis elsewhere, are there once the network is.
Wants=network-online.target
After=network-online.target
# A board in a cupboard has nobody who would start it again.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
WorkingDirectory={folder}
User={user}
{groups}\
# The files of a long queue are read first.
TimeoutStartSec=5min
# Running answers get their time, and it says when it needs more.
TimeoutStopSec=2min
# SIGTERM is for the first process, which stops the others in order.
KillMode=mixed
WatchdogSec=2min
Restart=on-failure
RestartSec=5
# 2: a setting that cannot be used, or a token that was revoked, which another start would not change.
RestartPreventExitStatus=2

# Workers put themselves first in line for the kernel: one of them dies rather than the queue, and is started again.
OOMScoreAdjust=-500
OOMPolicy=continue
LimitNOFILE=102400
# A core file would hold prompts.
LimitCORE=0

NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
PrivateTmp=yes
# The NPU and the memory that it shares with the CPU; everything else below /dev stays closed.
DevicePolicy=closed
DeviceAllow=char-drm rw
DeviceAllow=char-dma_heap rw
DeviceAllow=char-rknpu rw
DeviceAllow=/dev/rknpu rw
DeviceAllow=/dev/rga rw
DeviceAllow=/dev/mpp_service rw
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# Not restricted: /sys, where governors are set by whoever may; and calls of the kernel and executable memory, since
# nobody outside Rockchip knows what its library asks for.

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit, before it is written. Paths are absolute."""

    part: str
    """One of `PARTS`."""
    command: tuple[str, ...]
    folder: Path
    """Where the application lies."""
    user: str
    groups: tuple[str, ...]
    """Those to whom the NPU's device files belong."""
    writable: tuple[Path, ...]
    """Folders, which must exist."""

    @property
    def name(self) -> str:
        """Its name, such as `rockchipllama.service`."""
        return unit_name(self.part)

    def text(self) -> str:
        """The unit's file. Raises `ValueError` for a path with quotes or a line break, which no unit can name."""
        return _UNIT.format(
            name=self.name,
            description=PARTS[self.part],
            # Variables are looked for in all words but the first.
            command=" ".join(
                [_quoted(self.command[0]), *(_quoted(word).replace("$", "$$") for word in self.command[1:])]
            ),
            folder=_specifiers(str(self.folder)),
            user=self.user,
            groups=f"SupplementaryGroups={' '.join(self.groups)}\n" if self.groups else "",
            writable=_list(self.writable),
        )


def unit_name(part: str) -> str:
    """What the unit of a part is called: `rockchipllama.service` is everything."""
    return "rockchipllama.service" if part == "up" else f"rockchipllama-{part}.service"


def _list(paths: Iterable[Path]) -> str:
    return " ".join(_quoted(str(path)) for path in paths)


def _quoted(word: str) -> str:
    return f'"{_specifiers(word)}"'


def _specifiers(word: str) -> str:
    if not word.isprintable() or set(word) & set("\"'\\"):
        raise ValueError(f"no unit of systemd can name {word!r}")
    return word.replace("%", "%%")
