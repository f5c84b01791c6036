"""How fast a model runs on a chip, from the vendor's own measurements in `external/rkllm/benchmark.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from npu.errors import ModelRefused
from npu.simulator.library import FACTS

BENCHMARK: Final = FACTS / "benchmark.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Times of a simulated model. A rate or a time of 0 takes no time at all."""

    prefill_tps: float = 0
    """Prompt tokens read per second."""
    decode_tps: float = 0
    """Tokens said per second; the first comes that much after the prompt was read."""
    load_ms: float = 0
    """What loading takes. The vendor publishes no figures, so no profile has one."""
    logits_ms: float = 0
    """What a callback with logits takes besides reading its tokens."""
    memory_mb: float = 512


def profile_of(soc: str, model: str, size: str, dtype: str) -> Profile:
    """The profile of a row of the table, such as `("RK3588", "Qwen3", "0.6B", "w8a8")`; case does not matter.

    The first token comes after the time the vendor measured for it, with a prompt as long as theirs. Raises `ModelRefused`
    with the rows there are for that chip.
    """
    wanted = [part.lower() for part in (soc, model, size, dtype)]
    for row in _rows():
        if [str(row[key]).lower() for key in ("soc", "model", "size", "dtype")] == wanted:
            decode_ms = 1000 / row["tokens_per_s"]
            return Profile(
                prefill_tps=row["seqlen"] * 1000 / (row["ttft_ms"] - decode_ms),
                decode_tps=row["tokens_per_s"],
                logits_ms=decode_ms,
                memory_mb=row["memory_mb"] or Profile().memory_mb,
            )
    raise ModelRefused(f"{model} {size} {dtype} was not measured on {soc}. {measured(soc)}")


def measured(soc: str) -> str:
    """A sentence on the rows there are for a chip, as `bench fleet` takes them; on the chips where there is none."""
    rows = _rows()
    there = [f"{row['model']}-{row['size']}:{row['dtype']}" for row in rows if row["soc"].lower() == soc.lower()]
    if there:
        return f"Measured there: {', '.join(there).lower()}."
    return f"Chips: {', '.join(sorted({row['soc'] for row in rows}))}."


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(BENCHMARK.read_text(encoding="utf-8"))["rows"]
    return rows
