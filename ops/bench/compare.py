"""Two reports of `bench model` beside each other: what changed, by how much, and whether that may be chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from statistics import NormalDist
from typing import TYPE_CHECKING

import msgspec

from npu.errors import NpuError
from ops.bench.model.report import MEASURES, Report, measured
from ops.bench.model.sample import Sample, passed_checks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
"""Raised when a field of the comparison as JSON changes its meaning or goes away."""
CONFIDENCE = 0.95
DRAWS = 10_000
"""Of the bootstrap."""
AT_ONCE = 500
"""Of the draws; a thousand runs of each prompt would fill the memory of a board otherwise."""
NOTICED = 0.01
"""A change smaller than that is none, however sure it is."""
ALIKE = 0.03
"""Where all of the interval is within that, and no such change is certain, nothing changed."""
LESS_IS_BETTER = frozenset({"first_token_ms", "memory_mb"})
COMPARED = ("first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "client_tokens_per_s", "memory_mb")
IDENTICAL = (
    "Both reports are the same measurement: nothing changed, and the intervals tell how much its own runs differ."
)
ONCE = "quality"
"""The set whose prompts are asked once, so that of its times nobody can tell: what they say is no verdict on the whole."""
TOGETHER = "together_tokens_per_s"
"""The measure of several answers at once: tokens a second of all of them."""

Groups = Mapping[str, Sequence[float]]
"""Values by prompt."""


class Verdict(StrEnum):
    """What one figure says of the second report."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    UNCLEAR = "unclear"
    """The runs differ too much among themselves to tell."""
    TOO_FEW = "too few runs"
    """No prompt was asked twice, so nobody knows how much runs differ."""


class Row(msgspec.Struct, frozen=True):
    """One figure of both reports. `before` and `after` are geometric means over the prompts that both have."""

    set: str
    concurrency: int
    measure: str
    unit: str
    before: float
    after: float
    change: float
    """As a share: 0.1 is a tenth more."""
    low: float | None
    high: float | None
    """The interval in which the change lies with a confidence of 95 %; null where nobody can tell."""
    verdict: Verdict


class Answers(msgspec.Struct, frozen=True):
    """The checks of both reports' answers, as shares that passed."""

    prompts: int
    before: float
    after: float
    change: float
    low: float
    high: float
    verdict: Verdict
    lost: list[str]
    """Checks that passed before and no more."""
    won: list[str]


class Comparison(msgspec.Struct, frozen=True):
    """Everything that both reports have."""

    schema: int
    command: str
    before: str
    after: str
    verdict: Verdict
    """Worse when anything is, or more answers failed; better when something is and nothing is worse."""
    rows: list[Row]
    answers: Answers | None
    notes: list[str]


class NotComparable(NpuError):
    """Raised for reports that cannot be compared; the message is for the user."""


def compare(before: Report, after: Report, *, anyway: bool = False) -> Comparison:
    """Compare two reports. Raises `NotComparable` when they have nothing in common, or one does not count and is not to be
    compared `anyway`."""
    faults = [fault for report in (before, after) for fault in report.faults]
    if faults and not anyway:
        raise NotComparable(f"The figures of a report do not count: {faults[0]} Measure again, or add --anyway.")
    rows = [*_rows(before, after), *_together(before, after)]
    identical = before == after
    if identical:
        rows = [msgspec.structs.replace(row, verdict=Verdict.SAME) for row in rows]
    answers = _answers(before.samples, after.samples)
    if not rows and answers is None:
        raise NotComparable("The two reports have no prompt in common.")
    verdicts = {row.verdict for row in rows if row.set != ONCE} | ({answers.verdict} if answers is not None else set())
    if _failed(after) > _failed(before):
        verdicts.add(Verdict.WORSE)
    order = (Verdict.WORSE, Verdict.BETTER, Verdict.UNCLEAR, Verdict.TOO_FEW, Verdict.SAME)
    return Comparison(
        schema=SCHEMA,
        command="bench compare",
        before=_title(before),
        after=_title(after),
        verdict=next((verdict for verdict in order if verdict in verdicts), Verdict.TOO_FEW),
        rows=rows,
        answers=answers,
        notes=[*([IDENTICAL] if identical else []), *faults, *_differences(before, after)],
    )


def interval(before: Groups, after: Groups, seed: int = 0) -> tuple[float, float, float, float, float] | None:
    """Geometric means of both, the change from one to the other, and the ends of its interval, which are NaN where no prompt has
    two values; None where the two have no prompt in common.

    How much runs differ is taken from all prompts together, each around its own mean, for a few runs of one tell little.
    """
    shared = [name for name in before if after.get(name) and before[name]]
    if not shared:
        return None
    import numpy as np

    generator = np.random.default_rng(seed)
    means, spread = [], np.zeros(DRAWS)
    for side, sign in ((before, -1), (after, 1)):
        logs = [np.log(np.asarray(side[name])) for name in shared]
        means.append(float(np.mean([each.mean() for each in logs])))
        rest = [_around(each) for each in logs if len(each) > 1]
        if not rest:
            spread[:] = np.nan
            continue
        counts = [len(each) for each in logs]
        weights = np.concatenate([np.full(count, 1 / (count * len(logs))) for count in counts])
        pool = np.concatenate(rest)
        for at in range(0, DRAWS, AT_ONCE):
            spread[at : at + AT_ONCE] += sign * (generator.choice(pool, size=(AT_ONCE, sum(counts))) @ weights)
    tail = (1 - CONFIDENCE) / 2
    spread *= _few(sum(len(side[name]) - 1 for side in (before, after) for name in shared))
    low, high = np.quantile(means[1] - means[0] + spread, (tail, 1 - tail))
    change = math.exp(means[1] - means[0]) - 1
    return math.exp(means[0]), math.exp(means[1]), change, math.exp(low) - 1, math.exp(high) - 1


def judge(measure: str, change: float, low: float, high: float) -> Verdict:
    """What an interval says."""
    if math.isnan(low):
        return Verdict.TOO_FEW
    if (low > 0 or high < 0) and abs(change) >= NOTICED:
        return Verdict.WORSE if (change > 0) == (measure in LESS_IS_BETTER) else Verdict.BETTER
    return Verdict.SAME if low >= -ALIKE and high <= ALIKE else Verdict.UNCLEAR


def _few(freedom: int) -> float:
    """By how much wider than by a normal distribution the interval of a mean is whose spread is known from few values only:
    Student's t, by the first terms of its expansion. `freedom` are its degrees."""
    z, v = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), max(1, freedom)
    terms = (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return (z + sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)) / z


def _around(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    # A mean of few values is nearer to them than the true one; this takes that back.
    found: NDArray[np.float64] = (logs - logs.mean()) * math.sqrt(len(logs) / (len(logs) - 1))
    return found


def _rows(before: Report, after: Report) -> Iterator[Row]:
    places = dict.fromkeys((sample.set, sample.concurrency) for sample in before.samples)
    for of_set, level in places:
        groups = [_by_prompt(report.samples, of_set, level) for report in (before, after)]
        for measure in COMPARED:
            values = [{name: _positive(measured(each, measure)) for name, each in group.items()} for group in groups]
            yield from _row(of_set, level, measure, MEASURES[measure], *values)


def _together(before: Report, after: Report) -> Iterator[Row]:
    for level in dict.fromkeys(each.concurrency for each in before.rounds):
        values = [
            {"": _positive(each.tokens_per_s for each in report.rounds if each.concurrency == level)}
            for report in (before, after)
        ]
        yield from _row("performance", level, TOGETHER, "tokens/s", *values)


def _row(of_set: str, level: int, measure: str, unit: str, before: Groups, after: Groups) -> Iterator[Row]:
    found = interval(before, after)
    if found is None:
        return
    first, second, change, low, high = found
    unknown = math.isnan(low)
    yield Row(
        set=of_set,
        concurrency=level,
        measure=measure,
        unit=unit,
        before=round(first, 3),
        after=round(second, 3),
        change=round(change, 5),
        low=None if unknown else round(low, 5),
        high=None if unknown else round(high, 5),
        verdict=judge(measure, change, low, high),
    )


def _answers(before: Sequence[Sample], after: Sequence[Sample]) -> Answers | None:
    import numpy as np

    first, second = passed_checks(before), passed_checks(after)
    prompts = [name for name in first if name in second]
    if not prompts:
        return None
    shares = np.array([[np.mean(list(side[name].values())) for name in prompts] for side in (first, second)])
    changes = shares[1] - shares[0]
    drawn = np.random.default_rng(0).choice(changes, size=(DRAWS, len(changes))).mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(drawn, (tail, 1 - tail)))
    verdict = Verdict.SAME if not changes.any() else Verdict.UNCLEAR
    if len(prompts) > 1 and (low > 0 or high < 0):  # one prompt tells nothing of others
        verdict = Verdict.BETTER if low > 0 else Verdict.WORSE
    moved = [
        (name, what, second[name][what] - passed)
        for name in prompts
        for what, passed in first[name].items()
        if what in second[name]
    ]
    return Answers(
        prompts=len(prompts),
        before=round(float(shares[0].mean()), 4),
        after=round(float(shares[1].mean()), 4),
        change=round(float(changes.mean()), 4),
        low=round(low, 4),
        high=round(high, 4),
        verdict=verdict,
        lost=[f"{name}: {what}" for name, what, change in moved if change < 0],
        won=[f"{name}: {what}" for name, what, change in moved if change > 0],
    )


def _by_prompt(samples: Sequence[Sample], of_set: str, level: int) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if (sample.set, sample.concurrency) == (of_set, level) and sample.error is None:
            found[sample.prompt].append(sample)
    return found


def _positive(values: Iterable[float]) -> list[float]:
    return [value for value in values if value > 0]


def _failed(report: Report) -> float:
    return sum(sample.error is not None for sample in report.samples) / max(1, len(report.samples))


def _differences(before: Report, after: Report) -> Iterator[str]:
    for report in (before, after):
        if _failed(report):
            yield f"{_failed(report):.0%} of the answers failed: {_title(report)}."
    pairs = {
        "models": (before.model.id, after.model.id),
        "engines": (before.model.engine_version, after.model.engine_version),
        "quantizations": (before.model.quantization, after.model.quantization),
        "files of prompts": (before.options.prompts, after.options.prompts),
        "boards": tuple(", ".join(each.board for each in report.conditions) for report in (before, after)),
    }
    for what, (first, second) in pairs.items():
        if first != second:
            yield f"The {what} differ: {first or 'unknown'} and {second or 'unknown'}."


def _title(report: Report) -> str:
    return f"{report.model.id}, {report.taken_at}"
