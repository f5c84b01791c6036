"""A drawing of lines, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 170, 80, 40, 50
COLOURS = ("#1f6fb4", "#b4541f", "#3b7d3b")


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
