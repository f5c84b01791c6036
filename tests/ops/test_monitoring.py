"""What Prometheus and Grafana are given asks for metrics and labels that exist."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from api.metrics import METRICS, PREFIX
from tasks.settings import ROOT

FOLDER = ROOT / "ops/monitoring"


def samples() -> dict[str, set[str]]:
    """Every name that can be asked for, and its labels."""
    found = {}
    for metric in METRICS:
        name, labels = PREFIX + metric.name, {*metric.labels, "instance", "job"}
        if metric.kind is CounterMetricFamily:
            found[name + "_total"] = labels
        elif metric.kind is HistogramMetricFamily:
            found |= {name + "_bucket": labels | {"le"}, name + "_sum": labels, name + "_count": labels}
        else:
            found[name] = labels
    return found


def expressions() -> list[str]:
    """Those of the alerts and of the dashboard."""
    rules = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"expr: (?:>-\n)?((?:.|\n)+?)\n +(?:for|annotations):", rules)
    assert len(alerts) == rules.count("- alert:")
    dashboard = json.loads((FOLDER / "grafana/dashboards/rockchipllama.json").read_text(encoding="utf-8"))
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [" ".join(each.split()) for each in [*alerts, *shown]]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_asks_for_what_there_is(expression: str) -> None:
    """A misspelt name would show an empty panel, and an alert that never comes."""
    known = samples() | {"up": {"instance", "job"}}
    names = re.findall(rf"\b(?:{PREFIX}\w+|up\b)", expression)
    assert names and set(names) <= set(known), expression
    labels = set.intersection(*(known[name] for name in names))
    grouped = {
        label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in group.split(",")
    }
    chosen = set(re.findall(r"[{,]\s*(\w+)\s*[=!]~?", expression))
    assert grouped | chosen <= labels | set().union(*(known[name] for name in names if "/" in expression)), expression


def test_the_dashboard_shows_every_metric_of_boards_and_jobs() -> None:
    """What is measured and never shown helps nobody."""
    shown = " ".join(expressions())
    hidden = [metric.name for metric in METRICS if PREFIX + metric.name not in shown]
    assert hidden == ["queue_open"]
