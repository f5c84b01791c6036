"""What was pulled: where it came from, and the digest of each file, kept beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from npu.whole_file import write_whole

RECORD: Final = "pulled.json"


class RecordedFile(msgspec.Struct, frozen=True):
    """One file as it arrived; its digest was verified, or is the first one anybody has seen of it."""

    name: str
    size: int
    sha256: str
    tag: str = ""
    """The entity tag that its server told of it; empty where it told none."""


NOTHING: Final = RecordedFile("", -1, "")
"""Stands for a file that was not pulled."""


class Record(msgspec.Struct, frozen=True):
    """One pull."""

    asked: str
    source: dict[str, str]
    """Repository, commit and file; or an address, or a path."""
    files: tuple[RecordedFile, ...]


def read_record(folder: Path) -> Record | None:
    """What was pulled into a folder; None when nothing was, or nobody can tell any more."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Keep it. Raises `OSError`."""
    write_whole(folder / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
