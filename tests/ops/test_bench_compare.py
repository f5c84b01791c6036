"""What `bench compare` makes of two reports."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from ops.bench.compare import Comparison, NotComparable, Verdict, compare, interval, judge
from ops.bench.compare_table import view
from ops.bench.model.checks import Verdict as Check
from ops.bench.model.report import Report, dumped
from ops.bench.model.sample import Sample
from ops.bench.model.table import view as measured
from ops.cli.main import app
from tests.ops.bench_report import report, sample


def timed(speed: float, first: float = 200.0, noise: float = 0.01, seed: int = 1) -> list[Sample]:
    """Five prompts of five runs each; prompts differ by much, and runs by a little."""
    drawn = random.Random(seed)
    return [
        sample(
            prompt=str(prompt),
            run=run,
            decode_tokens_per_s=speed * (1 + prompt / 10) * drawn.lognormvariate(0, noise),
            first_token_ms=first * (1 + prompt) * drawn.lognormvariate(0, noise),
        )
        for prompt in range(5)
        for run in range(1, 6)
    ]


def verdicts(found: Comparison) -> dict[str, Verdict]:
    return {row.measure: row.verdict for row in found.rows}


def test_a_change_is_found_in_its_direction() -> None:
    """A slower generation is worse and an earlier first token is better; all in all it is worse."""
    found = compare(report(timed(30)), report(timed(28, 190, seed=2)))
    assert verdicts(found) == {
        "decode_tokens_per_s": Verdict.WORSE,
        "first_token_ms": Verdict.BETTER,
        "together_tokens_per_s": Verdict.TOO_FEW,
    }
    [row] = [row for row in found.rows if row.measure == "decode_tokens_per_s"]
    assert row.low is not None and row.high is not None
    assert row.low < 28 / 30 - 1 < row.high < 0 and row.change == pytest.approx(28 / 30 - 1, abs=0.01)
    assert found.verdict is Verdict.WORSE
    back = compare(report(timed(28, 190)), report(timed(30, 190)))
    assert back.verdict is Verdict.BETTER


def test_equal_models_are_seldom_called_different() -> None:
    """The interval holds what it says: of pairs without a difference, about one in twenty seems to have one."""
    wrong = 0
    for seed in range(60):
        sides = [{each.prompt: [] for each in timed(1)} for _ in range(2)]  # type: dict[str, list[float]]
        for number, side in enumerate(sides):
            for each in timed(30, noise=0.05, seed=2 * seed + number):
                side[each.prompt].append(each.decode_tokens_per_s or 0)
        found = interval(*sides)
        assert found is not None
        wrong += found[3] > 0 or found[4] < 0
    assert 1 <= wrong <= 8


@pytest.mark.parametrize("runs", [2, 5])
def test_a_few_runs_of_one_prompt_are_not_surer(runs: int) -> None:
    """As those of the reference prompt are, and the rounds of several at once."""
    drawn, pairs, wrong = random.Random(3), 300, 0
    for _ in range(pairs):
        before, after = ({"": [drawn.lognormvariate(3, 0.03) for _ in range(runs)]} for _ in range(2))
        found = interval(before, after)
        assert found is not None
        wrong += found[3] > 0 or found[4] < 0
    assert 0.02 < wrong / pairs < 0.08


@pytest.mark.parametrize(
    ("change", "low", "high", "verdict"),
    [
        (0.5, 0.4, 0.6, Verdict.BETTER),
        (-0.5, -0.6, -0.4, Verdict.WORSE),
        (0.005, 0.001, 0.009, Verdict.SAME),
        (0.0, -0.029, 0.029, Verdict.SAME),
        (0.02, 0.005, 0.035, Verdict.BETTER),
        (0.3, 0.01, 0.6, Verdict.BETTER),
        (0.03, -0.02, 0.09, Verdict.UNCLEAR),
        (0.001, -0.1, 0.1, Verdict.UNCLEAR),
        (0.1, -0.1, 0.3, Verdict.UNCLEAR),
        (0.5, float("nan"), float("nan"), Verdict.TOO_FEW),
    ],
)
def test_what_an_interval_says(change: float, low: float, high: float, verdict: Verdict) -> None:
    """Of tokens a second, of which more are better; of milliseconds it is the other way around."""
    assert judge("decode_tokens_per_s", change, low, high) is verdict
    other = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert judge("first_token_ms", change, low, high) is other.get(verdict, verdict)


def answered(*passed: bool) -> Report:
    samples = [
        sample("quality", prompt=str(number), checks=[Check("is right", right), Check("ends", True)])
        for number, right in enumerate(passed)
    ]
    return report(samples)


def test_answers_that_got_worse_are_named() -> None:
    """Several lost ones are worse, one may be chance, and none is the same."""
    good = answered(*[True] * 5)
    lost = compare(good, answered(True, *[False] * 4)).answers
    assert lost is not None and lost.verdict is Verdict.WORSE and (lost.before, lost.after) == (1.0, 0.6)
    assert lost.lost == [f"quality {number}: is right" for number in (1, 2, 3, 4)] and lost.won == []
    one = compare(answered(*[True] * 4, False), good).answers
    assert one is not None and one.verdict is Verdict.UNCLEAR and one.won == ["quality 4: is right"]
    lone = compare(answered(True), answered(False)).answers
    assert lone is not None and lone.verdict is Verdict.UNCLEAR and lone.lost == ["quality 0: is right"]
    same = compare(good, good).answers
    assert same is not None and same.verdict is Verdict.SAME


def test_what_cannot_be_compared_is_refused() -> None:
    """Figures that do not count, unless somebody insists, and reports with nothing in common."""
    hot = report(timed(30), ("Heat slowed b down.",))
    with pytest.raises(NotComparable, match=r"Heat slowed b down\. .*--anyway"):
        compare(report(timed(30)), hot)
    assert compare(report(timed(30)), hot, anyway=True).notes == ["Heat slowed b down."]
    alone = [msgspec.structs.replace(report(samples), rounds=[]) for samples in (timed(30), [sample(prompt="other")])]
    with pytest.raises(NotComparable, match="no prompt in common"):
        compare(*alone)


def test_failed_answers_and_other_models_are_told_apart() -> None:
    """A sample with an error is no figure, and makes the second report the worse one; that the models differ is said."""
    broken = [*timed(30), sample(prompt="0", error="gone", decode_tokens_per_s=1.0)]
    found = compare(report(timed(30)), report(broken, model="other"))
    assert verdicts(found)["decode_tokens_per_s"] is Verdict.SAME
    assert found.notes[0].startswith("4% of the answers failed: other") and found.verdict is Verdict.WORSE
    assert found.notes[1:] == ["The models differ: m and other."]
    assert compare(report(broken), report(timed(30))).verdict is not Verdict.WORSE


def test_prompts_that_are_asked_once_are_no_verdict_on_the_rest() -> None:
    """Nobody can tell of their times, and what can be told is the same."""
    alike = msgspec.structs.replace(report([*timed(30), *answered(True, True).samples]), rounds=[])
    found = compare(alike, msgspec.structs.replace(alike, seconds=2.0))
    assert found.verdict is Verdict.SAME and Verdict.TOO_FEW in {row.verdict for row in found.rows}


def test_a_report_beside_itself_has_not_changed(tmp_path: Path) -> None:
    """It says so, whatever its runs differ; and each table says how it is read."""
    path = tmp_path / "r.json"
    path.write_bytes(dumped(report(timed(30, noise=0.5))))
    said = CliRunner().invoke(app, ["bench", "compare", str(path), str(path)])
    assert said.exit_code == 0 and "the same measurement: nothing changed" in said.stdout
    assert "All in all: same" in said.stdout and " unclear\n" not in said.stdout
    assert "  unclear        else: the runs differ too much to tell\n" in said.stdout


@pytest.mark.parametrize("width", [40, 80, 120])
def test_tables_name_each_figure_however_narrow(width: int) -> None:
    """Less figures rather than nameless ones, and no line is cut off."""
    console = Console(width=width, file=io.StringIO())
    console.print(view(compare(report(timed(30)), report(timed(28, seed=2))), width))
    console.print(measured(report(timed(30)), width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the one above
    assert "…" not in shown and shown.count("Short prompts") == 3 and shown.count("  first token, ms ") == 2
    assert max(map(len, shown.splitlines())) <= width


def test_the_command_tells_scripts_by_its_exit_code(tmp_path: Path) -> None:
    """0 when nothing is worse, 3 when something is; as a table, and as JSON."""
    fast, slow = tmp_path / "fast.json", tmp_path / "slow.json"
    fast.write_bytes(dumped(report(timed(30))))
    slow.write_bytes(dumped(report(timed(20, seed=2))))
    worse = CliRunner().invoke(app, ["bench", "compare", str(fast), str(slow)])
    assert worse.exit_code == 3 and "All in all: worse" in worse.stdout and "-33" in worse.stdout
    better = CliRunner().invoke(app, ["bench", "compare", str(slow), str(fast), "--json"])
    assert better.exit_code == 0 and json.loads(better.stdout)["verdict"] == "better"
    assert view(compare(answered(True), answered(False))) is not None
