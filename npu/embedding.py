"""What is done to the numbers of a model's last hidden layer until they are the vector of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from npu.errors import EngineFailed, SamplingRefused


def mean(rows: memoryview[float], width: int) -> Sequence[float]:
    """The mean of rows of `width` numbers that lie one after another."""
    import numpy  # for those who need it

    means: list[float] = (
        numpy.frombuffer(rows.cast("B"), numpy.float32).reshape(-1, width).mean(0, numpy.float64).tolist()
    )
    return means


def unit(vector: Sequence[float], dimensions: int | None = None) -> list[float]:
    """The vector's first `dimensions` numbers (all of them when None), scaled to the length 1.

    Raises `SamplingRefused` when it has fewer, and `EngineFailed` when there is no such scale: zeros, infinities, NaN.
    """
    if dimensions is not None and not 1 <= dimensions <= len(vector):
        raise SamplingRefused(
            "dimensions", f"a vector of this model has {len(vector)} numbers, so ask for 1 to {len(vector)} of them."
        )
    kept = vector[:dimensions]
    length = math.hypot(*kept)
    if not (math.isfinite(length) and length > 0):
        raise EngineFailed(
            "The engine gave a vector of zeros, or with numbers that are none. The model is loaded anew."
        )
    return [number / length for number in kept]
