"""The unit on this machine: put into place, taken away, asked how it does.

ServiceRefused    what was asked cannot be done here; the message says what can
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from npu.whole_file import write_whole
from ops.systemd.unit import Unit, unit_name

FOLDER = Path("/etc/systemd/system")
"""Where the units of an administrator lie."""
BOOTED = Path("/run/systemd/system")
"""There where systemd runs the machine (sd_booted(3))."""
NPU_GROUPS = ("render", "video")
"""To whom the device files belong on Debian and Ubuntu."""
PATIENCE = 400
"""Seconds for `systemctl`, which waits until the service has answered: more than the unit allows."""


class ServiceRefused(Exception):
    """Raised with a message for the user."""


def user_for(named: str | None, installed: Path) -> str:
    """Who runs the service: whoever was named, else whoever owns the folder in which it is installed. Raises `ServiceRefused`."""
    owner = installed.stat().st_uid
    try:
        account = pwd.getpwnam(named) if named is not None else pwd.getpwuid(owner)
    except KeyError as error:
        raise ServiceRefused(f"This machine has no user '{named or owner}'. Name another with --user.") from error
    if account.pw_uid == 0:
        raise ServiceRefused(
            "The service needs no rights of root, and runs what others wrote. Name a user for it with --user; "
            "`sudo useradd --system --home-dir /var/lib/rockchipllama rockchipllama` makes one."
        )
    return account.pw_name


def npu_groups() -> tuple[str, ...]:
    """Those of `NPU_GROUPS` that this machine has: systemd starts nothing in a group that is not there."""
    known = {group.gr_name for group in grp.getgrall()}
    return tuple(name for name in NPU_GROUPS if name in known)


def make_folder(folder: Path, user: str, *, read_only: bool = False) -> None:
    """Make sure that `folder` is there, and `user`'s own unless it is `read_only`. Raises `ServiceRefused`."""
    account = pwd.getpwnam(user)
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o750)
        os.chown(
            folder, account.pw_uid, account.pw_gid, follow_symlinks=False
        )  # whoever owns what it lies in may be quick
    if not read_only and folder.stat().st_uid != account.pw_uid:
        raise ServiceRefused(
            f"{folder} belongs to another user than '{user}', who is to run the service. `sudo chown -R {user} {folder}` "
            "gives it over, or name its owner with --user."
        )


def check(folder: Path = FOLDER, booted: Path = BOOTED) -> None:
    """Whether units can be put into place here at all. Raises `ServiceRefused`."""
    _check_booted(booted)
    if not os.access(folder, os.W_OK):
        raise ServiceRefused(f"Only root may write into {folder}: put `sudo` in front of the command.")


def install(unit: Unit, folder: Path = FOLDER, booted: Path = BOOTED) -> None:
    """Write the unit, have it started with the machine, and start it now, anew if it runs. Raises `ServiceRefused`."""
    check(folder, booted)
    try:
        text = unit.text()
    except ValueError as error:
        raise ServiceRefused(f"The service cannot be installed from or for such a folder: {error}.") from error
    write_whole(folder / unit.name, text.encode())
    (folder / unit.name).chmod(0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", unit.name)
    try:
        _systemctl("restart", unit.name)
    except ServiceRefused as error:
        raise ServiceRefused(
            f"{error}\nThe unit is installed all the same. `journalctl -u {unit.name}` has what the service said; one that runs "
            "in a terminal must be stopped first."
        ) from error


def uninstall(part: str, folder: Path = FOLDER, booted: Path = BOOTED) -> bool:
    """Stop it and take the unit away; whether there was one. Data and models stay. Raises `ServiceRefused`."""
    check(folder, booted)
    name = unit_name(part)
    if not (folder / name).exists():
        return False
    _systemctl("disable", "--now", name)
    (folder / name).unlink()
    _systemctl("daemon-reload")
    return True


def state(part: str, booted: Path = BOOTED) -> dict[str, str]:
    """What systemd says of the unit: its properties by their names. Raises `ServiceRefused`."""
    _check_booted(booted)
    names = (
        "LoadState",
        "UnitFileState",
        "ActiveState",
        "SubState",
        "StatusText",
        "NRestarts",
        "Result",
        "StateChangeTimestamp",
    )
    said = _systemctl("show", unit_name(part), *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _check_booted(booted: Path) -> None:
    if not booted.is_dir() or shutil.which("systemctl") is None:
        raise ServiceRefused(
            "systemd does not run this machine, so it cannot keep the service. `ops/run` runs it in a terminal; "
            "docs/deployment.md has other ways."
        )


def _systemctl(*words: str) -> str:
    return _run(("systemctl", "--no-pager", *words))


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ServiceRefused(
            f"`{' '.join(command)}` did not come to an end; `journalctl -u rockchipllama` may say why."
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise ServiceRefused(f"`{' '.join(command)}` failed: {said}")
    return done.stdout
