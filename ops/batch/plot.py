"""How a batch went while it was watched, as a drawing: requests done, and tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ops.batch.pace import duration
from ops.drawing import page
from ops.service import ServiceError

MOST = 120
"""Points of a line; more could not be told apart."""


class Moment(NamedTuple):
    """What was seen at a second: requests that were done, and tokens said in all."""

    second: float
    done: int
    tokens: int


def svg(seen: Sequence[Moment], title: str) -> str:
    """The drawing. Raises `ServiceError` where too little was seen for one."""
    if len(seen) < 2 or seen[-1].second <= seen[0].second:
        raise ServiceError("There is nothing to draw: the batch was over before it was watched.")
    first, last = seen[0].second, seen[-1].second
    step = max(1, len(seen) // MOST)
    points = [*seen[:-1:step], seen[-1]]
    done = [((each.second - first) / (last - first), float(each.done)) for each in points]
    speed: list[tuple[float, float]] = []
    for before, after in pairwise(points):
        if after.second > before.second:
            rate = (after.tokens - before.tokens) / (after.second - before.second)
            speed += [((each.second - first) / (last - first), rate) for each in (before, after)]
    span = duration(last - first)
    return page(title, [("requests done", done, span), ("tokens/s", speed, span)])
