"""`ops/fetch-runtime VERSION`: the vendor's library into the data directory, from its repository or a checkout of it.

Nothing of the vendor's is kept in this project, so each machine fetches its own copy. What arrives is read before it gets
its name: a web page, a pointer of Git LFS or a library for another machine never lies where the engine would take it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from npu.errors import RuntimeRefused
from npu.rkllm.elf import Target, Unreadable, read_library, this_machine
from npu.rkllm.evidence import FOLDER, NAME
from npu.rkllm.library import identify
from npu.whole_file import put_in_place, write_whole
from tasks.board.pull.download import DownloadFailed, digest, download, opener

LIBRARIES: Final = FOLDER / "libraries.toml"
RECORD: Final = "digests.json"
"""In the folder of fetched libraries: the digest each was first fetched with."""
MACHINES: Final = {"aarch64": "aarch64", "armv7l": "armhf", "armv8l": "armhf"}
"""What the kernel calls a machine, and the vendor's folder for it."""
CHECKOUT: Final = "rkllm-runtime/Linux/librkllm_api"
LISTED: Final = "listed"
"""Instead of a digest: the one in the table."""
TARGETS: Final = {"aarch64": Target(183, 64), "armhf": Target(40, 32)}
"""The code the vendor's folders hold."""


class FetchFailed(Exception):
    """Raised when the library cannot be had; its message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Library:
    """One release for one machine."""

    version: str
    machine: str
    """As the vendor's repository calls it."""
    url: str
    sha256: str | None
    """What the file must hash to; None: nobody has told us yet."""
    whose: str = f"{LIBRARIES.name} lists"
    """Who told, in a sentence that ends with the digest."""


def find(version: str, machine: str, table: Path = LIBRARIES) -> Library:
    """The release in the table. Raises `FetchFailed` with what there is instead."""
    listed = tomllib.loads(table.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = listed["library"]
    fitting = [row for row in rows if row["machine"] == machine]
    if version not in {row["version"] for row in rows}:
        # Said first: another machine would not help.
        there = ", ".join(dict.fromkeys(row["version"] for row in fitting or rows))
        hint = " Releases 1.0.x are not supported: their calls differ." if version.startswith("1.0.") else ""
        raise FetchFailed(f"There is no release {version}.{hint} There are {there}.")
    for row in fitting:
        if row["version"] == version:
            url = listed["origin"]["url"].format(at=row["at"], machine=machine)
            return Library(version, machine, url, row.get("sha256"))
    if not fitting:
        known = " and ".join(dict.fromkeys(row["machine"] for row in rows))
        raise FetchFailed(
            f"The vendor publishes no {NAME} for {machine}, only for {known}. To fetch one for a board, name its machine: "
            "--machine aarch64. On this machine, ROCKCHIPLLAMA_RKLLM_LIBRARY=simulator stands in for it."
        )
    there = ", ".join(row["version"] for row in fitting)
    raise FetchFailed(f"There is no release {version} for {machine}. There are {there}.")


def _with_digest(library: Library, sha256: str | None) -> Library:
    """Held to what whoever runs this asks for. Raises `FetchFailed` where that is no digest, or none is listed."""
    if sha256 is None:
        return library
    if sha256 != LISTED:
        if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
            raise FetchFailed(f"'{sha256}' is no SHA-256, which has 64 hexadecimal digits.")
        return replace(library, sha256=sha256.lower(), whose="--sha256 asks for")
    if library.sha256 is None:
        raise FetchFailed(
            f"{LIBRARIES.name} lists no digest of release {library.version} for {library.machine}. Give the one that you know "
            "with --sha256 DIGEST (RKLLM_SHA256 when an image is built)."
        )
    return library


def fetch(
    library: Library, folder: Path, source: Path | None = None, *, name: str | None = None, pause: float = 1.0
) -> Path:
    """Put the library into `folder`/VERSION/MACHINE, and return its path. `source` is a file, or a checkout to copy it from.

    `name` is what this machine calls such machines, when it is not as the vendor does. A download goes on where an earlier
    one ended, after `pause` seconds. Raises `FetchFailed`; what lay there before then lies there still.
    """
    home = folder / library.version / (name or library.machine)
    target, draft = home / NAME, home / f"{NAME}.partial"
    known = library.sha256 or _recorded(folder, library)
    if target.is_file() and known is not None and digest(target) == known:
        _check(target, library)
        print(f"{target} is there already, as it was fetched (SHA-256 {known}).")
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        if source is not None:
            shutil.copyfile(_in_checkout(source, library), draft)
        else:
            print(f"Fetching {NAME} {library.version} for {library.machine} from {library.url} …", flush=True)
            _download(library, draft, pause)
        return _settle(library, folder, draft, target, known)
    except OSError as error:
        raise FetchFailed(f"{target} cannot be written: {error.strerror or error}.") from error


def _download(library: Library, draft: Path, pause: float) -> None:
    try:
        download(library.url, draft, None, _silent, opener=opener(), pause=pause)
    except DownloadFailed as error:
        raise FetchFailed(
            f"{NAME} could not be downloaded: {error}. Check the network; what has arrived is kept, and the same command "
            "goes on from there. Or clone the vendor's repository elsewhere and name it: --from PATH."
        ) from error


def _silent(have: int, total: int | None) -> None:
    """A few megabytes need no progress."""


def _in_checkout(source: Path, library: Library) -> Path:
    places = (
        [source]
        if not source.is_dir()
        else [source / CHECKOUT / library.machine / NAME, source / library.machine / NAME]
    )
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FetchFailed(
            f"There is none of {', '.join(map(str, places))}. Name a checkout of the vendor's repository at the release you "
            f"want, or the {NAME} itself."
        )
    return found


def _settle(library: Library, folder: Path, draft: Path, target: Path, known: str | None) -> Path:
    """Judge the draft, and give it its name."""
    found = digest(draft)
    try:
        _check(draft, library)
    except FetchFailed:
        draft.unlink()
        raise
    if known is not None and found != known:
        draft.unlink()
        whose = library.whose if library.sha256 else f"{folder / RECORD} recorded when it was first fetched"
        raise FetchFailed(
            f"This is not the {NAME} {library.version} that was expected: its SHA-256 is {found}, and {whose} {known}. "
            "It was deleted. If you know that the new one is right, put that right and run this again."
        )
    put_in_place(draft, target)
    if known is None:
        print(f"No digest of it is listed yet, so it is trusted this once, and held to it from now on: SHA-256 {found}")
    else:
        print(f"Verified: SHA-256 {found}")
    _record(folder, library, found)
    return target


def _check(path: Path, library: Library) -> None:
    """Read what it is; where it runs on this machine, ask it for its version as well."""
    try:
        target = read_library(path.read_bytes()).target
    except Unreadable as error:
        raise FetchFailed(f"What came for {NAME} {library.version} is none: {error}") from error
    wanted = TARGETS.get(library.machine, this_machine())
    if target != wanted:
        raise FetchFailed(
            f"What came for {NAME} {library.version} is for {target}, not for {library.machine}. Fetch that machine's."
        )
    if target != this_machine():
        print(f"It is for {target}, so its version could not be checked on this machine.")
        return
    try:
        identity = identify(path, library.version)
    except RuntimeRefused as error:
        raise FetchFailed(f"What came is not {NAME} {library.version}: {error}") from error
    print(f"It is {NAME} {identity.version}: {' '.join(identity.how[1:])}")


def _read_record(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / RECORD
    try:
        record: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        return {key: {"sha256": row["sha256"], "from": row["from"]} for key, row in record.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FetchFailed(
            f"{path}, which records what was fetched before, cannot be read: {error!r}. Mend it, or remove it to trust anew."
        ) from error


def _recorded(folder: Path, library: Library) -> str | None:
    row = _read_record(folder).get(f"{library.version}/{library.machine}")
    return row["sha256"] if row else None


def _record(folder: Path, library: Library, sha256: str) -> None:
    record = _read_record(folder)
    record[f"{library.version}/{library.machine}"] = {"sha256": sha256, "from": library.url}
    write_whole(folder / RECORD, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def main(words: Sequence[str] | None = None, table: Path = LIBRARIES) -> int:
    """The command. Returns its exit code: 0, or 1 with a sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="ops/fetch-runtime",
        description="Fetch Rockchip's runtime for language models, under the vendor's licence.",
    )
    parser.add_argument("version", help="the release, such as 1.3.0")
    parser.add_argument("--machine", help="aarch64 or armhf; this machine when absent")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="PATH", help="a checkout of the vendor's repository"
    )
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="where the service keeps its files")
    parser.add_argument(
        "--sha256",
        metavar="DIGEST",
        help=f"what the file must hash to; `{LISTED}`: only what {LIBRARIES.name} has a digest of",
    )
    given = parser.parse_args(words)
    here = platform.machine()
    machine = given.machine or MACHINES.get(here, here)
    # The engine looks into the folder named as the kernel names the machine it runs on.
    name = here if MACHINES.get(here) == machine else {"armhf": "armv7l"}.get(machine, machine)
    try:
        library = _with_digest(find(given.version.removeprefix("v"), machine, table), given.sha256)
        path = fetch(library, _data_dir(given.data_dir) / "runtime", given.source, name=name)
    except FetchFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{path} is ready. It is Rockchip's, under its own licence: read the LICENSE in the vendor's repository.")
    return 0


def _data_dir(given: Path | None) -> Path:
    if given is not None:
        return given.absolute()
    from ops.configuration import load
    from tasks.settings import TaskSettings

    return load(TaskSettings).data_dir


if __name__ == "__main__":
    sys.exit(main())
