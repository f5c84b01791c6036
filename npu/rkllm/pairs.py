"""Versions of converter, runtime and driver that are known not to work together, each with where that is known from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Version = tuple[int, int, int]

DRIVER_NEEDED: Version = (0, 9, 8)
"""The oldest driver in the kernel that the vendor's documents allow with today's runtimes."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One trap."""

    applies: Callable[[Version, Version | None, str], bool]
    """To a model made by this converter, on this runtime (None: not known), of this name."""
    what: str
    """What comes of it, as the end of a sentence about the model."""
    mend: str
    source: str


def _endless(toolkit: Version, runtime: Version | None, name: str) -> bool:
    return runtime is not None and runtime >= (1, 3, 0) and toolkit == (1, 2, 2)


def _padding(toolkit: Version, runtime: Version | None, name: str) -> bool:
    return toolkit == (1, 2, 3) and "deepseek" in name and "distill" in name


def _old_file(toolkit: Version, runtime: Version | None, name: str) -> bool:
    return toolkit < (1, 1, 0)


def _newer_file(toolkit: Version, runtime: Version | None, name: str) -> bool:
    return runtime is not None and toolkit > runtime


PAIRS: tuple[Pair, ...] = (
    Pair(
        _endless,
        "does not stop: this runtime misreads the token that ends an answer in files of that converter",
        "Convert it with 1.2.3 or newer, or use runtime 1.2.3.",
        "airockchip/rknn-llm#534, a user's report",
    ),
    Pair(
        _padding,
        "answers with `[PAD…]`: that converter spoils models of the family DeepSeek-R1-Distill",
        "Convert it with 1.2.2, and run it on a runtime 1.2.x.",
        "airockchip/rknn-llm#424, a maintainer",
    ),
    Pair(
        _old_file,
        "does not load (`invalid rknn llm model magic`): files of 1.0.x have another form",
        "Convert it anew; the toolkit's `update_rkllm` brings files of 1.0.2 up to date.",
        "the vendor's documentation",
    ),
    Pair(
        _newer_file,
        "will probably not load (`invalid rkllm model!`): the file is newer than the runtime",
        "Use a runtime that is at least as new as the converter.",
        "seen in logs; the vendor promises nothing",
    ),
)
"""Looked through in this order, and the first that applies is told."""


def parse_version(text: str | None) -> Version | None:
    """`1.2.3`, or `1.2.1b1` (counted as 1.2.1), as numbers; None when it is no such version."""
    parts = (text or "").partition("b")[0].split(".")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def find_trap(toolkit: str | None, runtime: str | None, name: str) -> Pair | None:
    """The known trap of a model called `name` that `toolkit` made, on that `runtime`; None when there is none."""
    made = parse_version(toolkit)
    if made is None:
        return None
    return next((pair for pair in PAIRS if pair.applies(made, parse_version(runtime), name.lower())), None)
