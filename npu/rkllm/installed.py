"""The releases of the library that were installed for this program, and the one that was chosen of them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from npu.errors import RuntimeNotFound
from npu.rkllm.elf import Unreadable, read_target, this_machine
from npu.rkllm.evidence import FOLDER, NAME
from npu.whole_file import write_whole

CHOICE: Final = "chosen"
"""The file in the folder of fetched libraries that names the release to use."""

_HEAD = 512
"""Bytes of a file that tell what it is."""
_RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:b(\d+))?")


def installed(fetched: Path | None, pinned: Path = FOLDER) -> dict[str, Path]:
    """The file of each release that lies in `pinned` or `fetched`, the newest first. What is no library for this machine is left
    out."""
    found: dict[str, Path] = {}
    for version, place in _files(fetched, pinned):
        if not _fault(place):
            found.setdefault(version, place)
    return found


def unusable(fetched: Path | None, pinned: Path = FOLDER) -> dict[str, str]:
    """The releases there of which no file is a library for this machine, and why, as a clause."""
    there = installed(fetched, pinned)
    return {
        version: _fault(place).split(". ")[0].rstrip(".")
        for version, place in _files(fetched, pinned)
        if version not in there
    }


def _files(fetched: Path | None, pinned: Path) -> Iterator[tuple[str, Path]]:
    for folder in releases(fetched, pinned):
        for place in (folder / NAME, folder / platform.machine() / NAME):
            if os.path.isfile(place):
                yield folder.name.removeprefix("v"), place


def _fault(path: Path) -> str:
    """What its first bytes say against a file; whether it is whole is looked at when it is used."""
    try:
        with path.open("rb") as file:
            target = read_target(file.read(_HEAD))
    except Unreadable as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "" if target == this_machine() else f"it is for {target}, and this machine is {this_machine()}"


def releases(fetched: Path | None, pinned: Path) -> Iterator[Path]:
    """The folders that are named as releases, the newest first."""
    shelves = [pinned] if fetched is None else [pinned, fetched]
    found = [release for shelf in shelves for release in _releases(shelf)]
    yield from (folder for _, folder in sorted(found, key=lambda release: release[0], reverse=True))


def _releases(shelf: Path) -> Iterator[tuple[tuple[float, ...], Path]]:
    try:
        folders = sorted(shelf.iterdir())
    except OSError:
        return  # Nothing was ever fetched, or it is not ours to see.
    for folder in folders:
        if version := _RELEASE.fullmatch(folder.name):
            *numbers, beta = version.groups()
            yield (*map(float, numbers), float(beta or "inf")), folder  # A beta comes before its release.


def chosen(fetched: Path | None) -> str | None:
    """The release that was chosen; None leaves it to the order in which they are looked for."""
    try:
        return (fetched / CHOICE).read_text(encoding="utf-8").strip() or None if fetched is not None else None
    except (OSError, UnicodeDecodeError):
        return None


def choose(fetched: Path, version: str) -> None:
    """Have this release used by whatever is started from now on. Raises `OSError`."""
    fetched.mkdir(parents=True, exist_ok=True)
    write_whole(fetched / CHOICE, f"{version}\n".encode())


def find_release(version: str, fetched: Path | None, pinned: Path = FOLDER) -> Path:
    """The library of that release. Raises `RuntimeNotFound` with those there are."""
    there = installed(fetched, pinned)
    if why := unusable(fetched, pinned).get(version):
        raise RuntimeNotFound(
            f"What lies here as the release {version} of {NAME} cannot be used: {why}. `ops/fetch-runtime {version}` fetches "
            "the right one."
        )
    if version not in there:
        raise RuntimeNotFound(
            f"The release {version} of {NAME} is not installed here; there are: {', '.join(there) or 'none'}. "
            f"`ops/fetch-runtime {version}` fetches it."
        )
    return there[version]
