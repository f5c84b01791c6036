"""The report of `bench model` in a terminal: what it shows first."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ops.bench.model.markdown import NAMES, SETS, number, passed
from ops.bench.model.report import Report

SHOWN = ("first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "client_tokens_per_s", "memory_mb")


def view(report: Report) -> Group:
    """One table, and what to say of it."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=Text(report.model.id), title_justify="left")
    for name in ("WHAT", "MEASURE", "N", "MEAN", "MEDIAN", "MIN", "MAX", "P95"):
        table.add_column(name, justify="left" if name in ("WHAT", "MEASURE") else "right", no_wrap=name != "MEASURE")
    for row in report.summary:
        if row.measure in SHOWN:
            what = SETS[row.set] + (f", {row.concurrency} at once" if row.concurrency > 1 else "")
            values = (row.mean, row.median, row.min, row.max, row.p95)
            table.add_row(what, f"{NAMES[row.measure]}, {row.unit}", str(row.samples), *map(number, values))
    parts: list[Table | Text] = [table, Text()]
    for level in sorted({each.concurrency for each in report.rounds}):
        rates = [each.tokens_per_s for each in report.rounds if each.concurrency == level]
        parts.append(Text(f"{level} at once: {number(sum(rates) / len(rates))} tokens/s together"))
    if report.vendor is not None:
        ratios = ", ".join(f"{NAMES[each.measure]} {each.ratio:.3f}" for each in report.vendor.compared)
        parts.append(Text(f"Ours to the vendor's ({report.vendor.soc}, release {report.vendor.release}): {ratios}"))
    good, of = passed(report.samples)
    if of:
        parts.append(Text(f"{good} of {of} answers passed all of their checks"))
    if failed := sum(sample.error is not None for sample in report.samples):
        parts.append(Text(f"{failed} of {len(report.samples)} answers failed"))
    parts += [Text(f"Does not count: {fault}", style="bold") for fault in report.faults]
    return Group(*parts)
