"""Pooling, cutting and scaling of vectors."""

from __future__ import annotations

import math
from array import array

import pytest

from npu.embedding import mean, unit
from npu.errors import EngineFailed, SamplingRefused


def test_the_mean_is_that_of_rows() -> None:
    assert mean(memoryview(array("f", [1, 2, 3, 3, 4, 5])), 3) == [2, 3, 4]


def test_a_vector_is_cut_and_scaled() -> None:
    """Cut first: what is left has the length 1."""
    assert unit([3.0, 4.0]) == [0.6, 0.8]
    assert unit([3.0, 4.0, 100.0], 2) == [0.6, 0.8]


@pytest.mark.parametrize("dimensions", [0, 3])
def test_more_than_there_is_is_refused(dimensions: int) -> None:
    with pytest.raises(SamplingRefused, match="1 to 2") as refused:
        unit([3.0, 4.0], dimensions)
    assert refused.value.field == "dimensions"


@pytest.mark.parametrize("vector", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_numbers_that_are_none_are_the_engines_fault(vector: list[float]) -> None:
    with pytest.raises(EngineFailed):
        unit(vector)
