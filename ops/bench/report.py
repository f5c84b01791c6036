"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ops.bench.budgets import BUDGETS, Budget
from ops.bench.figures import Figure
from tasks.version import VERSION

SCHEMA = 1
"""Raised when a field of the JSON report changes its meaning or goes away."""


def table(figures: Mapping[str, Figure]) -> Iterator[str]:
    """One line for each budget, in their order."""
    rows = [("what", "measured", "budget", "")]
    rows += [_row(budget, figures.get(budget.id)) for budget in BUDGETS]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for what, measured, budget, verdict in rows:
        yield f"{what:<{widths[0]}}  {measured:>{widths[1]}}  {budget:>{widths[2]}}  {verdict}".rstrip()


def details(figures: Mapping[str, Figure]) -> Iterator[str]:
    """What explains a figure, one line for each that has it."""
    for budget in BUDGETS:
        figure = figures.get(budget.id)
        if figure is not None and figure.detail:
            words = ", ".join(f"{name} {_number(value)}" for name, value in figure.detail.items())
            yield f"{budget.id}: {words}"


def as_json(
    figures: Mapping[str, Figure],
    failures: Mapping[str, str],
    machine: Mapping[str, str | int | float],
    *,
    quick: bool,
    seconds: float,
) -> dict[str, Any]:
    """The report as one object."""
    return {
        "schema": SCHEMA,
        "command": "bench overhead",
        "version": VERSION,
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(seconds, 1),
        "machine": dict(machine),
        "rows": [_entry(budget, figures.get(budget.id)) for budget in BUDGETS],
        "failures": dict(failures),
    }


def _row(budget: Budget, figure: Figure | None) -> tuple[str, str, str, str]:
    sign = "≥" if budget.at_least else "≤"
    limit = "" if budget.limit is None else f"{sign} {_number(budget.limit)} {budget.unit}".rstrip()
    if figure is None:
        return budget.what, "-", limit, "not measured"
    verdict = {None: "", True: "within", False: "OVER"}[budget.within(figure.value)]
    return budget.what, f"{_number(figure.value)} {budget.unit}".rstrip(), limit, verdict


def _entry(budget: Budget, figure: Figure | None) -> dict[str, Any]:
    return {
        "id": budget.id,
        "what": budget.what,
        "unit": budget.unit,
        "measured": None if figure is None else round(figure.value, 4),
        "budget": budget.limit,
        "at_least": budget.at_least,
        "ratio": None if figure is None or not budget.limit else round(figure.value / budget.limit, 4),
        "within": None if figure is None else budget.within(figure.value),
        "samples": 0 if figure is None else figure.samples,
        "detail": {} if figure is None else {name: round(value, 4) for name, value in figure.detail.items()},
    }


def _number(value: float) -> str:
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
