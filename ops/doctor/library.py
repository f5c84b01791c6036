"""What the RKLLM runtime needs beside itself."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from npu.engines import Setup
from npu.engines.rkllm.library import library_of, simulated
from npu.errors import ModelRefused
from npu.hardware import ROOT
from ops.doctor.facts import Library, LibraryFacts

_OPENMP = re.compile(rb"libomp\.so(?:\.\d+)*")
_FOLDERS = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib")


def look_for_library(setup: Setup) -> Library:
    """The vendor's library as a worker would find it, or which simulator stands in for it; that is not built here."""
    named = setup.rkllm_library
    try:
        version = simulated(named)
        if version is not None:
            return Library(None, set_to=named, simulated=version)
        identity = library_of(setup)
    except ModelRefused as error:
        return Library(None, str(error), named)
    return Library(library_facts(identity.path, identity.version, " ".join(identity.how)), set_to=named)


def library_facts(path: Path, version: str | None, why: str = "", root: Path = ROOT) -> LibraryFacts:
    """The runtime at `path`, with the libraries it asks for and that are neither beside it nor where the loader looks.

    `version` and `why` are what its identification gave. The file is read, never loaded.
    """
    return LibraryFacts(path, version, why, tuple(name for name in _wanted(path) if not _is_there(name, path, root)))


def _wanted(path: Path) -> list[str]:
    # The names stand in the file as text. Of all that it needs, OpenMP is what images are known to lack.
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return sorted({found[0].decode() for found in _OPENMP.finditer(data)})


def _is_there(name: str, library: Path, root: Path) -> bool:
    return any((folder / name).exists() for folder in (library.parent, *_searched(root)))


def _searched(root: Path) -> Iterator[Path]:
    for place in _FOLDERS:
        yield root / place
        yield from (root / place).glob("*-linux-gnu*")
    for part in sorted((root / "etc/ld.so.conf.d").glob("*.conf")):
        for line in part.read_text(errors="replace").splitlines():
            if line.startswith("/"):
                yield root / line.strip().lstrip("/")
