"""Reads what a shared library is and what it exports from its bytes, without loading it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MACHINES: Final = {3: "x86", 8: "MIPS", 40: "32-bit ARM", 62: "x86-64", 183: "aarch64", 243: "RISC-V"}
"""`e_machine`, for those anyone may have at hand."""

_HEADER_SIZE = {32: 52, 64: 64}
_SHARED = 3
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_GNU_HASH = 0, 4, 5, 6, 10, 0x6FFFFEF5
_NAMED_BINDINGS = (1, 2, 10)
"""Global, weak, unique: what other code can find."""
_LONGEST_NAME = 256
_MOST_TAGS = 1024
"""A library has some thirty. What has more is made to be slow to read."""


class Unreadable(Exception):
    """Raised when the bytes are no shared library for Linux; its message says what they are instead, and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """The kind of machine some code is for."""

    machine: int
    """`e_machine`."""
    bits: int
    """32 or 64."""

    def __str__(self) -> str:
        return MACHINES.get(self.machine, f"machine number {self.machine}")


@dataclass(frozen=True, slots=True)
class Library:
    """One shared library."""

    target: Target
    exported: frozenset[str]
    """Names other code can call or read."""


def this_machine() -> Target:
    """What this very interpreter was built for; only such libraries can be loaded into it."""
    with Path("/proc/self/exe").open("rb") as file:
        return _target(file.read(_HEADER_SIZE[64]))


def read_target(data: bytes) -> Target:
    """The machine the code in `data` is for. Raises `Unreadable` when it is no code for Linux at all."""
    if not data.startswith(b"\x7fELF"):
        raise Unreadable(_what_instead(data))
    if len(data) < 20:
        raise Unreadable(f"the file is cut off after {len(data)} bytes. Download it again.")
    return _target(data)


def read_library(data: bytes) -> Library:
    """All of it. Raises `Unreadable` when the file was cut off, damaged, or is a program rather than a library."""
    target = read_target(data)
    try:
        return Library(target, frozenset(_Image(data, target.bits).exported()))
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise Unreadable("the file is damaged inside. Download it again.") from error


def _target(data: bytes) -> Target:
    bits = {1: 32, 2: 64}.get(data[4])
    if bits is None or data[5] != 1:
        raise Unreadable("it was not made for any machine this program runs on.")
    return Target(struct.unpack_from("<H", data, 18)[0], bits)


def _what_instead(data: bytes) -> str:
    head = data[:512].lstrip().lower()
    if not data:
        return "the file is empty. Download it again."
    if head.startswith(b"version https://git-lfs"):
        return (
            "it is a pointer of Git LFS, not the file itself. Run `git lfs pull` where it came from, and copy it again."
        )
    if head.startswith((b"<!doctype html", b"<html")) or b"<html" in head:
        return "it is a web page, as a failed download leaves it. Download the file itself."
    if head.startswith((b"pk\x03\x04", b"\x1f\x8b", b"\xfd7zxz", b"bzh")):
        return "it is an archive. Unpack it, and name the librkllmrt.so inside."
    if head and all(byte >= 32 or byte in b"\t\n\r\f\x1b" for byte in head):
        return "it is a text file. Name the library itself."
    return "it is no library for Linux (an ELF file). Name another one, or download it again."


class _Image:
    """The headers of one file, whose tables are found the way the system's loader finds them."""

    def __init__(self, data: bytes, bits: int) -> None:
        self._data = data
        self._wide = bits == 64
        size = _HEADER_SIZE[bits]
        if len(data) < size:
            raise Unreadable(f"the file is cut off after {len(data)} bytes. Download it again.")
        layout = "<HHIQQQIHHHHHH" if self._wide else "<HHIIIIIHHHHHH"
        kind, _, _, _, segments, sections, _, _, segment_size, segment_count, section_size, section_count, _ = (
            struct.unpack_from(layout, data, 16)
        )
        if kind != _SHARED:
            raise Unreadable("it is a program or a part of one, not a shared library. Name librkllmrt.so itself.")
        self._check_end(segments + segment_size * segment_count)
        self._segments = [self._segment(segments + segment_size * at) for at in range(segment_count)]
        for kind, start, _, length in self._segments:
            if kind in (_PT_LOAD, _PT_DYNAMIC):
                self._check_end(start + length)
        self._check_end(sections + section_size * section_count)

    def exported(self) -> Iterator[str]:
        """The names defined here for others."""
        tables = dict(self._dynamic())
        names, name_bytes = self._at(tables[_DT_STRTAB]), tables[_DT_STRSZ]
        layout, size = ("<IBBHQQ", 24) if self._wide else ("<IIIBBH", 16)
        start = self._at(tables[_DT_SYMTAB])
        for at in range(self._symbol_count(tables)):
            fields = struct.unpack_from(layout, self._data, start + at * size)
            name, info, section = (fields[0], fields[1], fields[3]) if self._wide else (fields[0], fields[3], fields[5])
            if section and info >> 4 in _NAMED_BINDINGS and name < name_bytes:
                text = self._data[names + name : names + min(name + _LONGEST_NAME, name_bytes)]
                yield text.split(b"\0", 1)[0].decode("ascii", "replace")

    def _check_end(self, end: int) -> None:
        if end > len(self._data):
            raise Unreadable(
                f"the file is cut off: it has {len(self._data)} bytes of {end} or more. Download it again."
            )

    def _segment(self, at: int) -> tuple[int, int, int, int]:
        """Kind, offset in the file, address in memory, bytes in the file."""
        if self._wide:
            kind, _, start, address, _, length, _, _ = struct.unpack_from("<IIQQQQQQ", self._data, at)
        else:
            kind, start, address, _, length, _, _, _ = struct.unpack_from("<IIIIIIII", self._data, at)
        return kind, start, address, length

    def _at(self, address: int) -> int:
        """The offset in the file of an address in memory."""
        for kind, start, base, length in self._segments:
            if kind == _PT_LOAD and base <= address < base + length:
                return start + address - base
        raise ValueError("an address outside the file")

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        layout, size = ("<qQ", 16) if self._wide else ("<iI", 8)
        (start, length), *more = [(start, length) for kind, start, _, length in self._segments if kind == _PT_DYNAMIC]
        if more or length > _MOST_TAGS * size:
            raise ValueError("more dynamic tags than any library has")
        for tag, value in struct.iter_unpack(layout, self._data[start : start + length // size * size]):
            if tag == _DT_NULL:
                break
            yield tag, value

    def _symbol_count(self, tables: dict[int, int]) -> int:
        # No table says it outright; each of the two hashes over the names implies it.
        if _DT_HASH in tables:
            count: int = struct.unpack_from("<II", self._data, self._at(tables[_DT_HASH]))[1]
            return count
        start = self._at(tables[_DT_GNU_HASH])
        buckets, first, filters = struct.unpack_from("<III", self._data, start)
        chains = start + 16 + filters * (8 if self._wide else 4) + 4 * buckets
        last = max(struct.unpack_from(f"<{buckets}I", self._data, chains - 4 * buckets), default=0)
        if last < first:
            return int(first)
        while not struct.unpack_from("<I", self._data, chains + 4 * (last - first))[0] & 1:
            last += 1
        return int(last) + 1
