"""Measured figures, and the statistics behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, in the unit of its budget. `detail` is whatever explains it, in the units of its names."""

    id: str
    value: float
    samples: int = 1
    detail: dict[str, float] = field(default_factory=dict)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of `values` do not exceed, by nearest rank. Raises `ValueError` on no values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle one, the lower of two."""
    return percentile(values, 0.5)
