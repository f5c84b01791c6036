"""Few rows in which many choices meet: every two values of every two factors at least once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

Setting = tuple[str, str]
"""A factor and one of its values."""
Row = dict[str, str]


def covering_rows(factors: Mapping[str, Sequence[str]], by: str, matters: Callable[[str, str], bool]) -> list[Row]:
    """Rows that hold every pair of settings that can meet, the same ones each time.

    The value of the factor `by` decides which other factors are in a row: those for which `matters(factor, value)` is true.
    The rows are found one after another, each the one that adds most pairs among one try for every value of `by`; that is
    seldom the least number of rows, and always near it.
    """
    missing = dict.fromkeys(pair for value in factors[by] for pair in _pairs(factors, by, value, matters))
    rows: list[Row] = []
    while missing:
        tries = [_grow(factors, by, value, matters, missing) for value in factors[by]]
        best = max(tries, key=lambda row: sum(pair in missing for pair in combinations(row.items(), 2)))
        for pair in combinations(best.items(), 2):
            missing.pop(pair, None)
        rows.append(best)
    return rows


def _pairs(
    factors: Mapping[str, Sequence[str]], by: str, value: str, matters: Callable[[str, str], bool]
) -> Iterator[tuple[Setting, Setting]]:
    """Every pair that can meet in rows with this value of `by`, its settings in the order of the factors."""
    there = {
        name: (value,) if name == by else values for name, values in factors.items() if _is_in(name, by, value, matters)
    }
    for (one, ones), (other, others) in combinations(there.items(), 2):
        yield from (((one, first), (other, second)) for first in ones for second in others)


def _grow(
    factors: Mapping[str, Sequence[str]],
    by: str,
    value: str,
    matters: Callable[[str, str], bool],
    missing: Mapping[tuple[Setting, Setting], None],
) -> Row:
    """The row that comes of a missing pair when each factor in turn takes the value that adds most to it."""
    here = set(_pairs(factors, by, value, matters))
    chosen: Row = {by: value, **dict(next((pair for pair in missing if pair in here), ()))}
    order = [name for name in factors if _is_in(name, by, value, matters)]
    for name in order:
        if name not in chosen:

            def adds(candidate: str, name: str = name) -> int:
                trial = chosen | {name: candidate}
                kept = [(one, trial[one]) for one in order if one in trial]
                return sum(pair in missing for pair in combinations(kept, 2))

            chosen[name] = max(factors[name], key=adds)
    return {name: chosen[name] for name in order}


def _is_in(name: str, by: str, value: str, matters: Callable[[str, str], bool]) -> bool:
    return name == by or matters(name, value)
