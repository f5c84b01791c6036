"""Builds the simulator for a version of the runtime, once, and finds it again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from npu.errors import ModelRefused
from npu.simulator.header import Table, header
from npu.whole_file import put_in_place

FACTS: Final = Path(__file__).resolve().parents[2] / "external" / "rkllm"
"""What is known of the vendor's runtime, as data."""

SOURCE: Final = Path(__file__).with_name("rkllm_simulator.c")
OPTIONS: Final = ("-std=gnu11", "-O1", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-sanitize=all")
LIBRARIES: Final = ("-lpthread", "-lm")
COMPILE_SECONDS: Final = 180
"""A second is enough on a PC; a small board with a busy card, and zig's first call, may take minutes."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What `rkllm_createDefaultParam` of the built library says where the vendor's documents say nothing."""

    max_new_tokens: int = 512
    max_context_len: int = 4096
    embed_flash: int = 1


def build(version: str, cache: Path, defaults: Defaults = Defaults()) -> Path:
    """The simulator of runtime `version`, such as `1.2.3`, as a shared library in the folder `cache`.

    It is compiled when it is not there yet for this source, version and compiler; processes that build the same one at
    once each end up with a whole file. Raises `ModelRefused` for a version without a table, when there is no C compiler,
    and with the compiler's words when it fails.
    """
    compiler = find_compiler()
    source, declarations = SOURCE.read_bytes(), header(table_of(version), version, asdict(defaults)).encode()
    digest = hashlib.sha256()
    for part in (source, declarations, "\n".join([*compiler, *OPTIONS]).encode(), _identity(compiler)):
        digest.update(len(part).to_bytes(8, "little") + part)
    target = cache / f"librkllmrt-simulator-{version}-{digest.hexdigest()[:16]}.so"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _compile(compiler, source, declarations, target)
    return target


def find_compiler() -> tuple[str, ...]:
    """The command of a C compiler: cc, gcc or clang on the path, else the one of the package `ziglang`.

    Raises `ModelRefused` when there is none.
    """
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return (found,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    raise ModelRefused(
        "The simulator of the RKLLM runtime is built with a C compiler, and none was found (cc, gcc, clang). "
        "Install one (`apt install gcc`), or the Python package `ziglang` (`pip install ziglang`)."
    )


def table_of(version: str) -> Table:
    """The table of the family a version belongs to. Raises `ModelRefused` when there is none."""
    known: list[str] = []
    for path in sorted((FACTS / "abi").glob("*.json")):
        table: Table = json.loads(path.read_text(encoding="utf-8"))
        if version in table["runtimes"]:
            return table
        known += table["runtimes"]
    raise ModelRefused(
        f"There is no simulator of RKLLM runtime {version!r}. There are: {', '.join(known) or 'none; ' + str(FACTS)}."
    )


def _identity(compiler: tuple[str, ...]) -> bytes:
    """What changes when the compiler at a path is replaced: asking it for its version would cost as much as compiling."""
    stat = os.stat(os.path.realpath(compiler[0]))
    return f"{stat.st_size} {stat.st_mtime_ns}".encode()


def _compile(compiler: tuple[str, ...], source: bytes, declarations: bytes, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
        folder = Path(name)
        (folder / "rkllm.h").write_bytes(declarations)
        (folder / SOURCE.name).write_bytes(source)
        command = [*compiler, *OPTIONS, "-o", target.name, SOURCE.name, *LIBRARIES]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelRefused(
                f"The simulator of the RKLLM runtime could not be built: {error}. Is the compiler {compiler[0]} whole?"
            ) from error
        if done.returncode != 0:
            raise ModelRefused(
                f"The simulator of the RKLLM runtime could not be built; {' '.join(compiler)} said:\n"
                f"{done.stderr.strip()[-2000:]}"
            )
        put_in_place(folder / target.name, target)
