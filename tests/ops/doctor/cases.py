"""Facts of a board on which all is well, for tests to spoil."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from npu.hardware import read_board
from ops.doctor.facts import Disk, Facts, Library, LibraryFacts, ModelFacts, Python
from ops.doctor.finding import Finding, Level
from ops.doctor.report import examine
from tests.npu.boards import make_board

QWEN = ModelFacts(
    id="qwen3-0.6b",
    engine="rkllm",
    path=Path("/models/Qwen3-0.6B-rk3588-w8a8.rkllm"),
    size_bytes=800_000_000,
    soc="rk3588",
    dtype="w8a8",
)


def sound(root: Path, chip: str = "rk3588", **board: Any) -> Facts:
    """A board with one model for its NPU, the runtime, and room; `board` as for `make_board`."""
    make_board(root, chip, governor="performance", **board)
    return Facts(
        board=read_board(root),
        models_dir=Path("/models"),
        models=(replace(QWEN, soc=chip),),
        complaints=(),
        library=Library(LibraryFacts(Path("/usr/lib/librkllmrt.so"), "1.2.3")),
        python=Python((3, 11), private=True, bits=64, libc="glibc"),
        disk=Disk(Path("/data"), 5_000_000_000, writable=True),
        redis=None,
        unknown_settings=(),
    )


def on_pc(root: Path, **changes: Any) -> Facts:
    """A machine that is no board, with a model for the CPU."""
    return replace(
        sound(root),
        board=read_board(root / "nothing"),
        models=(ModelFacts("smollm2-135m", "llamacpp", Path("/models/smollm2-135m.gguf"), chat=True),),
        library=Library(None, "It was looked for everywhere."),
        **changes,
    )


def bad(facts: Facts) -> dict[str, Finding]:
    """What is found and not as it should be, by code."""
    return {finding.code: finding for finding in examine(facts) if finding.level is not Level.OK}


def levels(facts: Facts) -> dict[str, Level]:
    """The same, only how much it matters."""
    return {code: finding.level for code, finding in bad(facts).items()}
