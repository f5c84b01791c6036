"""The releases of the library that were installed for this program, and the one that was chosen of them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from npu.errors import RuntimeNotFound
from npu.rkllm.evidence import FOLDER, NAME
from npu.whole_file import write_whole

CHOICE: Final = "chosen"
"""The file in the folder of fetched libraries that names the release to use."""

_RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:b(\d+))?")


def installed(fetched: Path | None, pinned: Path = FOLDER) -> dict[str, Path]:
    """The file of each release that lies in `pinned` or `fetched`, the newest first."""
    found: dict[str, Path] = {}
    for folder in releases(fetched, pinned):
        for place in (folder / NAME, folder / platform.machine() / NAME):
            if os.path.isfile(place):
                found.setdefault(folder.name.removeprefix("v"), place)
    return found


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
    if version not in there:
        raise RuntimeNotFound(
            f"The release {version} of {NAME} is not installed here; there are: {', '.join(there) or 'none'}. "
            f"`ops/fetch-runtime {version}` fetches it."
        )
    return there[version]
