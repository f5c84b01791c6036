"""How a batch went while it was watched, as a drawing: requests done, and tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from ops.batch.pace import duration
from ops.service import ServiceError

WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 170, 80, 40, 50
COLOURS = ("#1f6fb4", "#b4541f", "#3b7d3b")
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


def page(title: str, panels: Sequence[tuple[str, Sequence[tuple[float, float]], str]]) -> str:
    """A drawing of lines below one another, each with what it shows, its points (x from 0 to 1), and where it ends."""
    height = TOP + len(panels) * (HEIGHT + GAP)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}">',
            "<style>text { font: 13px sans-serif }</style>",
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{LEFT}" y="22">{escape(title)}</text>',
            *(
                drawn
                for place, (name, line, span) in enumerate(panels)
                for drawn in _panel(name, line, TOP + place * (HEIGHT + GAP), COLOURS[place % len(COLOURS)], span)
            ),
            "</svg>\n",
        ]
    )


def _panel(name: str, line: Sequence[tuple[float, float]], top: int, colour: str, span: str) -> list[str]:
    most = max((value for _, value in line), default=0.0) or 1.0
    bottom = top + HEIGHT
    points = " ".join(f"{LEFT + x * WIDTH:.1f},{bottom - value / most * (HEIGHT - 10):.1f}" for x, value in line)
    return [
        f'<path d="M{LEFT},{top} V{bottom} H{LEFT + WIDTH}" fill="none" stroke="#888"/>',
        f'<text x="{LEFT - 6}" y="{top + 14}" text-anchor="end">{most:,.0f}</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{LEFT}" y="{bottom + 18}">{name}</text>',
        f'<text x="{LEFT + WIDTH}" y="{bottom + 18}" text-anchor="end">{span}</text>',
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
    ]
