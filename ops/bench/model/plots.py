"""The plots of a report: speed answer by answer, and the first token by the length of the prompt."""

from __future__ import annotations

from ops.bench.model.report import Report, measured
from ops.drawing import page

Points = list[tuple[float, float]]


def svg(report: Report) -> str | None:
    """The drawing; None where there is too little for one."""
    panels: list[tuple[str, Points, str]] = []
    alone = [sample for sample in report.samples if sample.set == "performance" and sample.concurrency == 1]
    speeds = measured(alone, "decode_tokens_per_s")
    if len(speeds) > 1:
        line = [(at / (len(speeds) - 1), speed) for at, speed in enumerate(speeds)]
        panels.append(("tokens/s of one answer after the other", line, f"{len(speeds)} answers"))
    waits = sorted(
        (float(sample.prompt_tokens - (sample.cached_tokens or 0)), sample.first_token_ms)
        for sample in report.samples
        if sample.set == "long_context" and sample.first_token_ms is not None and sample.prompt_tokens is not None
    )
    if len({length for length, _ in waits}) > 1:
        longest = waits[-1][0]
        points = [(length / longest, wait) for length, wait in waits]
        panels.append(("ms to the first token, by tokens read", points, f"{longest:.0f} tokens"))
    return page(f"{report.model.id}, {report.taken_at}", panels) if panels else None
