"""A comparison of two reports in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ops.bench.compare import TOGETHER, Comparison, Row
from ops.bench.model.markdown import NAMES, SETS, number

NARROW, TINY = 100, 70
"""Columns of a terminal below which the table has the changes without what they are of, and without their intervals, too."""


def view(found: Comparison, width: int = 200) -> Group:
    """One table that fits into so many columns, and the verdict below it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("MEASURE", overflow="fold")
    names = ("BEFORE", "AFTER", "CHANGE", "95 % INTERVAL")
    kept = slice(2, 3) if width < TINY else slice(2, 4) if width < NARROW else slice(4)
    for name in names[kept]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    title = ""
    for row in found.rows:
        what = SETS.get(row.set, row.set) + (f", {row.concurrency} at once" if row.concurrency > 1 else "")
        if what != title:
            table.add_row(Text(what, style="bold"))
            title = what
        measure = "generation, all together" if row.measure == TOGETHER else NAMES[row.measure]
        values = (number(row.before), number(row.after), _percent(row.change), _interval(row))
        table.add_row(f"  {measure}, {row.unit}", *values[kept], row.verdict.value)
    return Group(Text(f"before  {found.before}\nafter   {found.after}\n"), table, *map(Text, _lines(found)))


LEGEND = """
The true change lies within the interval in 95 of 100 comparisons. By it a figure is
  better, worse  where it does not hold zero, and the change is at least 1 %
  same           else, where all of it is within 3 % of zero
  unclear        else: the runs differ too much to tell"""
"""What the verdicts mean."""


def _lines(found: Comparison) -> Iterator[str]:
    if found.rows:
        yield LEGEND
    yield ""
    if found.answers is not None:
        answers = found.answers
        yield (
            f"Checks passed: {answers.before:.0%} before, {answers.after:.0%} after, "
            f"over {answers.prompts} prompt{'s' * (answers.prompts > 1)} "
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
