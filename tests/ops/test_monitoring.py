"""What Prometheus and Grafana are given asks for metrics, labels and values that exist, and shows what it was told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from api.metrics import METRICS, PREFIX
from tasks.events import FailureCode, FinishReason
from tasks.jobs import Lane
from tasks.settings import ROOT

FOLDER = ROOT / "ops/monitoring"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana/dashboards/rockchipllama.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
TARGET = {"instance", "job"}
"""Labels of Prometheus' own."""
VALUES = {"lane": set(Lane), "outcome": {*FinishReason, *FailureCode}}
"""Of the labels whose values are known beforehand."""
SELECTOR = re.compile(rf"\b({PREFIX}\w+|up|ALERTS)\b(?:\{{([^}}]*)\}})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


class Asked(NamedTuple):
    """One expression, and where it stands."""

    place: str
    expression: str
    told: str
    """What is said of each of its series: a legend, or the texts of an alert."""


def labels_of() -> dict[str, set[str]]:
    """Of every name that can be asked for."""
    found = {"up": TARGET}
    for metric in METRICS:
        name, labels = PREFIX + metric.name, {*metric.labels} | TARGET
        if metric.kind is CounterMetricFamily:
            found[name + "_total"] = labels
        elif metric.kind is HistogramMetricFamily:
            found |= {name + "_bucket": labels | {"le"}, name + "_sum": labels, name + "_count": labels}
        else:
            found[name] = labels
    kept = [grouped(rule["expr"]) for rule in ALERTS]
    found["ALERTS"] = {"alertname", "alertstate"}.union(*kept, *(rule["labels"] for rule in ALERTS)) | TARGET
    return found


def grouped(expression: str) -> set[str]:
    """The labels that its series have: those that every grouping leaves."""
    groups = [set(re.split(r",\s*", group)) for group in re.findall(r"\bby \(([^)]*)\)", expression)]
    if re.match(r"(sum|max|min|avg|count)\s*\(", expression):
        return set()  # over everything
    return set.intersection(*groups) - {"le"} if groups else {*TARGET}


def asked() -> Iterator[Asked]:
    for rule in ALERTS:
        yield Asked(rule["alert"], " ".join(rule["expr"].split()), " ".join(rule["annotations"].values()))
    for panel in PANELS:
        for target in panel["targets"]:
            yield Asked(f"{panel['title']} {target['refId']}", target["expr"], target.get("legendFormat", ""))
    for note in DASHBOARD["annotations"]["list"]:
        yield Asked(
            note["name"], f"max by (alertname, model, board) ({note['expr']})", note["titleFormat"] + note["textFormat"]
        )


@pytest.mark.parametrize("each", [pytest.param(each, id=each.place) for each in asked()])
def test_an_expression_asks_for_what_there_is(each: Asked) -> None:
    """A misspelt name, label or value would show an empty panel, and an alert that never comes."""
    known = labels_of()
    selectors = SELECTOR.findall(each.expression)
    assert selectors
    for name, matchers in selectors:
        assert name in known
        chosen = MATCHER.findall(matchers)
        assert {label for label, _ in chosen} <= known[name]
        for label, value in chosen:
            if label in VALUES:
                assert set(value.split("|")) <= VALUES[label]
    of_all = set().union(*(known[name] for name, _ in selectors))
    groups = re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", each.expression)
    assert {label for group in groups for label in re.split(r",\s*", group) if label} <= of_all
    assert set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", each.told)) <= grouped(each.expression)


def test_the_dashboard_shows_every_metric() -> None:
    """What is measured and never shown helps nobody."""
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    assert [metric.name for metric in METRICS if PREFIX + metric.name not in shown] == []


@pytest.mark.parametrize("panel", [pytest.param(panel, id=panel["title"]) for panel in PANELS])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """By a unit, a sentence, words for having nothing to show, and names of its series that tell them apart."""
    assert panel["description"].endswith(".")
    drawn = panel["fieldConfig"]["defaults"]
    assert panel["type"] == "table" or drawn["unit"]
    assert drawn["noValue"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs))
    for target in panel["targets"]:
        if panel["type"] == "timeseries":
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named == grouped(target["expr"]), "two series of one name"
        else:  # of a service that is gone, no value of an hour ago is shown as that of now
            assert target["instant"]


@pytest.mark.parametrize(
    "panel", [pytest.param(panel, id=panel["title"]) for panel in PANELS if panel["type"] == "table"]
)
def test_columns_are_there(panel: dict[str, Any]) -> None:
    """Each has a name, and what is said of one by name reaches it: a misspelt one would be ignored."""
    labels = set.union(*(grouped(target["expr"]) for target in panel["targets"]))
    values = {f"Value #{target['refId']}" for target in panel["targets"]} if len(panel["targets"]) > 1 else {"Value"}
    [organized] = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
    named = organized["renameByName"]
    assert set(named) == set(organized["indexByName"]) == (labels | values) - set(organized["excludeByName"])
    matchers = [each["matcher"] for each in panel["fieldConfig"]["overrides"]]
    told = {matcher["options"] for matcher in matchers if matcher["id"] == "byName"}
    assert told | {each["displayName"] for each in panel["options"].get("sortBy", [])} <= set(named.values())


def test_the_dashboard_fits_together() -> None:
    """No panel lies on another one, none has another's number, and every variable that is used can be chosen."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == {variable["name"] for variable in DASHBOARD["templating"]["list"]}


def test_variables_are_filled_from_what_there_is() -> None:
    known = labels_of()
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked_for = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert asked_for and asked_for[2] in known[asked_for[1]]


def test_a_line_is_where_its_alert_fires() -> None:
    """Some graphs draw the limit of an alert, and name it."""
    limits = {
        rule["alert"]: float(rule["expr"].split()[-1]) for rule in ALERTS if rule["expr"].split()[-2] in {"<", ">"}
    }
    named = [(alert, panel) for panel in PANELS for alert in re.findall(r"The alert (\w+) fires", panel["description"])]
    assert {alert for alert, _ in named} == {"QueueSlow", "MemoryShort"}
    for alert, panel in named:
        assert panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"] == {"mode": "dashed"}
        assert limits[alert] in {step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]}


def test_alerts_are_found_by_the_dashboard() -> None:
    """It looks for those of this service, which others of the same Prometheus are not."""
    for rule in ALERTS:
        assert rule["labels"]["service"] == "rockchipllama" and rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description"} == set(rule["annotations"])
