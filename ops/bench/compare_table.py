"""A comparison of two reports in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ops.bench.compare import TOGETHER, Comparison, Row
from ops.bench.model.markdown import NAMES, SETS, number


def view(found: Comparison) -> Group:
    """One table, and the verdict below it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("WHAT", "MEASURE", "BEFORE", "AFTER", "CHANGE", "95 % INTERVAL", ""):
        table.add_column(name, justify="left" if name in ("WHAT", "MEASURE", "") else "right")
    for row in found.rows:
        what = SETS.get(row.set, row.set) + (f", {row.concurrency} at once" if row.concurrency > 1 else "")
        measure = "generation, all together" if row.measure == TOGETHER else NAMES[row.measure]
        values = (number(row.before), number(row.after), _percent(row.change), _interval(row), row.verdict.value)
        table.add_row(what, f"{measure}, {row.unit}", *values)
    return Group(Text(f"before  {found.before}\nafter   {found.after}\n"), table, *map(Text, _lines(found)))


LEGEND = """
The true change lies within the interval in 95 of 100 comparisons. By it a figure is
  better, worse  where it does not hold zero, and the change is at least 1 %
  same           where all of it is within 3 % of zero, or the change is smaller than 1 %
  unclear        where the runs differ too much to tell"""
"""What the verdicts mean."""


def _lines(found: Comparison) -> Iterator[str]:
    if found.rows:
        yield LEGEND
    yield ""
    if found.answers is not None:
        answers = found.answers
        yield (
            f"Checks passed: {answers.before:.0%} before, {answers.after:.0%} after, over {answers.prompts} prompts "
            f"({100 * answers.low:+.0f} to {100 * answers.high:+.0f} points): {answers.verdict}"
        )
        yield from (f"  lost  {each}" for each in answers.lost)
        yield from (f"  won   {each}" for each in answers.won)
    yield from found.notes
    yield f"All in all: {found.verdict}"


def _interval(row: Row) -> str:
    return f"{_percent(row.low)} to {_percent(row.high)}" if row.low is not None and row.high is not None else "unknown"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"
