"""The report of `bench model` in a terminal: what it shows first."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ops.bench.model.markdown import NAMES, SETS, number, passed
from ops.bench.model.report import Report

SHOWN = ("first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "client_tokens_per_s", "memory_mb")


NARROW, TINY = 100, 64
"""Columns of a terminal below which the table has fewer figures."""


def view(report: Report, width: int = 200) -> Group:
    """One table that fits into so many columns, and what to say of it."""
    figures = {"N": "samples", "MEAN": "mean", "MEDIAN": "median", "MIN": "min", "MAX": "max", "P95": "p95"}
    kept = ("MEDIAN", "P95") if width < TINY else ("N", "MEAN", "MEDIAN", "P95") if width < NARROW else tuple(figures)
    table = Table(box=None, pad_edge=False, header_style="bold", title=Text(report.model.id), title_justify="left")
    table.add_column("MEASURE", overflow="fold")
    for name in kept:
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for row in report.summary:
        if row.measure in SHOWN:
            what = SETS[row.set] + (f", {row.concurrency} at once" if row.concurrency > 1 else "")
            if what != before:
                table.add_row(Text(what, style="bold"))
                before = what
            values = (number(getattr(row, figures[name])) for name in kept)
            table.add_row(f"  {NAMES[row.measure]}, {row.unit}", *values)
    parts: list[Table | Text] = [table, Text()]
    for level in sorted({each.concurrency for each in report.rounds}):
        rates = [each.tokens_per_s for each in report.rounds if each.concurrency == level]
        parts.append(Text(f"{level} at once: {number(sum(rates) / len(rates))} tokens/s together"))
    if report.vendor is not None:
        ratios = ", ".join(f"{NAMES[each.measure]} {each.ratio:.3f}" for each in report.vendor.compared)
        parts.append(Text(f"Ours to the vendor's ({report.vendor.soc}, release {report.vendor.release}): {ratios}"))
    if worth := passed(report.samples):
        parts.append(Text(worth))
    if failed := sum(sample.error is not None for sample in report.samples):
        parts.append(Text(f"{failed} of {len(report.samples)} answers failed"))
    parts += [Text(f"Does not count: {fault}", style="bold") for fault in report.faults]
    return Group(*parts)
