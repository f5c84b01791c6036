"""What the vendor measured of a model on a chip, beside what was measured here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from npu.errors import NpuError
from npu.simulator.profile import BENCHMARK
from ops.bench.model.report import Compared, Vendor, measured
from ops.bench.model.sample import Sample

MEASURES = (
    ("runtime_first_token_ms", "ms", "ttft_ms"),
    ("first_token_ms", "ms", "ttft_ms"),
    ("decode_tokens_per_s", "tokens/s", "tokens_per_s"),
    ("client_tokens_per_s", "tokens/s", "tokens_per_s"),
    ("memory_mb", "MB", "memory_mb"),
)
"""Ours, its unit, and theirs."""


class VendorUnknown(NpuError):
    """Raised for a model that the vendor did not measure; the message is for the user."""


def find(soc: str | None, names: Sequence[str], quantization: str) -> dict[str, Any] | None:
    """The vendor's row for a model with these names on this chip, if there is one: `qwen3-0.6b` is their Qwen3 0.6B."""
    if soc is None:
        return None
    found = [
        row
        for row in _rows()
        if row["soc"].lower() == soc.lower()
        and row["dtype"].lower() == quantization.lower()
        and any(_names(name, row) for name in names)
    ]
    return max(found, key=lambda row: len(_words(f"{row['model']} {row['size']}")), default=None)


def named(name: str) -> dict[str, Any]:
    """The row that somebody named, as `RK3588/Qwen3/0.6B/w8a8`. Raises `VendorUnknown` with those there are."""
    wanted = [part.strip().lower() for part in name.split("/")]
    rows = _rows()
    for row in rows:
        if [str(row[key]).lower() for key in ("soc", "model", "size", "dtype")] == wanted:
            return row
    there = [_name(row) for row in rows if row["soc"].lower() == wanted[0]] or sorted({row["soc"] for row in rows})
    raise VendorUnknown(f"The vendor has no figures for {name!r}. There are: {', '.join(there)}.")


def beside(row: dict[str, Any], samples: Sequence[Sample]) -> Vendor | None:
    """The vendor's figures beside the medians of the samples of the reference prompt; None without such samples."""
    ours = [sample for sample in samples if sample.set == "reference" and sample.error is None]
    compared = []
    for measure, unit, theirs in MEASURES:
        values = measured(ours, measure)
        if values and row[theirs]:
            middle = statistics.median(values)
            compared.append(Compared(measure, unit, round(middle, 3), row[theirs], round(middle / row[theirs], 4)))
    if not compared:
        return None
    return Vendor(
        release=_release(),
        soc=row["soc"],
        model=row["model"],
        size=row["size"],
        dtype=row["dtype"],
        prompt_tokens=row["seqlen"],
        new_tokens=row["new_tokens"],
        compared=compared,
    )


def _names(name: str, row: dict[str, Any]) -> bool:
    wanted, words = _words(f"{row['model']} {row['size']}"), _words(name)
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


def _words(name: str) -> list[str]:
    for separator in "-_:/":
        name = name.replace(separator, " ")
    return name.lower().split()


def _name(row: dict[str, Any]) -> str:
    return "/".join(str(row[key]) for key in ("soc", "model", "size", "dtype"))


def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BENCHMARK.read_text(encoding="utf-8"))
    return found


def _rows() -> list[dict[str, Any]]:
    return list(_table()["rows"])


def _release() -> str:
    return str(_table()["release"])
