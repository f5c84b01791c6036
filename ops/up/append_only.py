"""Valkey's append-only files after a power cut: what is damaged of them is cut off and kept beside, and the rest is served.

Valkey keeps a manifest, at most one base (the data at one moment) and increments (the commands since, one file after
another). It refuses to start when any of them is damaged, as the power may leave them: cut short, or with zeros for what
had not reached the disk. Its own repair tool, as of 9.1, takes every base it has itself written for damaged.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from npu.whole_file import damaged_name, set_aside, sync, write_whole
from ops.up.store import FOLDER, MANIFEST

_NAME = re.compile(r"appendonly\.aof\.(\d+)\.(base\.rdb|incr\.aof)")
_LINE = re.compile(
    r"file (?P<name>appendonly\.aof\.\d+\.(?:base\.rdb|incr\.aof)) seq (?P<seq>\d+) type (?P<kind>[bih]).*"
)
_LONGEST_LENGTH = 32
"""Bytes of the line that says how long what follows is."""


@dataclass(frozen=True, slots=True)
class File:
    """A line of the manifest. `kind` is `b` for the base, `i` for an increment, `h` for one that is needed no more."""

    name: str
    seq: int
    kind: str


def mend(folder: Path, binary: Path) -> Iterator[str]:
    """Cut the damage out of the append-only files below Valkey's `folder`, which no server may use meanwhile; yields a
    sentence for each piece that was cut off. Yields nothing when all is whole. Raises `OSError`.

    `binary` is the Valkey server, which can check a base.
    """
    files = folder / FOLDER
    manifest = files / MANIFEST
    if not files.is_dir():
        return
    listed = read_manifest(manifest)
    kept = _found(files) if listed is None else listed
    if listed is None and (kept or manifest.exists()):
        yield (
            f"The list of the queue's files was damaged, as by a power cut ({_set_aside(manifest)}). "
            "It was written again from the files that are there; nothing is lost by that."
        )
    base = next((file for file in kept if file.kind == "b"), None)
    if base is not None and not _base_is_whole(files / base.name, binary):
        if base.seq > 1:
            yield (
                "The queue's main file was damaged, as by a failing disk, and nothing can be made of the rest without it: "
                f"all jobs and API keys are lost. The files are kept in {set_aside(files)}."
            )
            return
        kept = [file for file in kept if file is not base]
        yield (
            f"The queue's first file was damaged, as by a power cut ({_set_aside(files / base.name)}). "
            "It is written before there are any jobs, so nothing is lost."
        )
    increments = [file for file in kept if file.kind == "i"]
    for place, file in enumerate(increments, 1):
        if (told := _mend_increment(files / file.name)) is None:
            continue
        # What was written after a hole makes no sense without what is missing.
        for other in increments[place:]:
            told += f" {other.name} came after it and is lost with it ({_set_aside(files / other.name)})."
        kept = [other for other in kept if other not in increments[place:]]
        yield told
        break
    if kept != listed and (kept or listed is not None):
        write_whole(manifest, to_manifest(kept))


def _mend_increment(path: Path) -> str | None:
    if not path.exists():
        path.touch()
        return f"The queue's file {path.name} is gone, as after a failing disk, and with it what it said of jobs."
    size, end = path.stat().st_size, whole_bytes(path)
    if end == size:
        return None
    return (
        f"The queue's file {path.name} was damaged, as by a power cut: the last {size - end} of its {size} bytes could not "
        f"be read ({_cut_off(path, end)}). What they said of jobs is lost, which is no more than the last second or two "
        "before a power cut."
    )


def whole_bytes(path: Path) -> int:
    """How many bytes of an increment are whole commands. A transaction is whole with its end: each of our steps is one."""
    size = path.stat().st_size
    end, inside = 0, False
    with path.open("rb") as file:
        while (name := _command(file, size)) is not None:
            inside = name == b"MULTI" or (inside and name != b"EXEC")
            if not inside:
                end = file.tell()
    return end


def _command(file: BinaryIO, most: int) -> bytes | None:
    """Read one command and give its name; None when what follows is not a whole one. A remark (`#…`) is one without a name."""
    line = file.readline(_LONGEST_LENGTH)
    if line.startswith(b"#"):
        return b"" if line.endswith(b"\r\n") else None
    words = _length(line, b"*")
    name = None
    for _ in range(words or 0):
        length = _length(file.readline(_LONGEST_LENGTH), b"$")
        if length is None or length > most:
            return None
        data = file.read(length + 2)
        if len(data) != length + 2 or not data.endswith(b"\r\n"):
            return None
        name = data[:-2].upper() if name is None else name
    return name


def _length(line: bytes, sign: bytes) -> int | None:
    digits = line[1:-2]
    return int(digits) if line.startswith(sign) and line.endswith(b"\r\n") and digits.isdigit() else None


def read_manifest(manifest: Path) -> list[File] | None:
    """What the manifest lists; None when it cannot be read, or is not there."""
    try:
        lines = manifest.read_text("ascii").splitlines(keepends=True)
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    found = [_LINE.fullmatch(line.removesuffix("\n")) for line in lines if line.endswith("\n")]
    files = [File(match["name"], int(match["seq"]), match["kind"]) for match in found if match is not None]
    return files if files and len(files) == len(lines) else None


def to_manifest(files: Iterable[File]) -> bytes:
    """A manifest that lists these files."""
    return "".join(f"file {file.name} seq {file.seq} type {file.kind}\n" for file in files).encode()


def _found(files: Path) -> list[File]:
    """What the manifest must have listed, by the names of the files that are there."""
    names = [match for path in files.iterdir() if (match := _NAME.fullmatch(path.name)) is not None]
    bases = sorted(int(match[1]) for match in names if match[2] == "base.rdb")
    increments = sorted(int(match[1]) for match in names if match[2] == "incr.aof")
    if len(bases) > 1:  # it was being rewritten: what came before the newest increment is in the newest base
        increments = increments[-1:]
    return [
        *(File(f"appendonly.aof.{seq}.base.rdb", seq, "b") for seq in bases[-1:]),
        *(File(f"appendonly.aof.{seq}.incr.aof", seq, "i") for seq in increments),
    ]


def _base_is_whole(path: Path, binary: Path) -> bool:
    """Valkey's program is its own checker when it is called by that name."""
    command = ["valkey-check-rdb", str(path)]
    return (
        path.exists() and subprocess.run(command, executable=binary, capture_output=True, check=False).returncode == 0
    )


def _set_aside(path: Path) -> str:
    if not path.exists():
        return "it was not there"
    return f"it is kept as {set_aside(path).name}"


def _cut_off(path: Path, end: int) -> str:
    aside = damaged_name(path)
    with path.open("rb") as file, aside.open("xb") as kept:
        file.seek(end)
        shutil.copyfileobj(file, kept)
    sync(aside)
    with path.open("r+b") as file:
        file.truncate(end)
    sync(path)
    sync(path.parent)
    return f"they are kept in {aside.name}"
