"""The report of `bench model` for people: figures, plots, prompts and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from statistics import mean

from ops.bench.model.report import Compared, Report, Summary
from ops.bench.model.sample import Sample, passed_checks

NAMES = {
    "first_token_ms": "first token",
    "total_ms": "whole answer",
    "runtime_first_token_ms": "first token, by the runtime",
    "prefill_tokens_per_s": "prefill, by the runtime",
    "decode_tokens_per_s": "generation, by the runtime",
    "client_tokens_per_s": "generation, by the client",
    "prompt_tokens": "prompt",
    "completion_tokens": "answer",
    "memory_mb": "memory, by the runtime",
}
"""The measures as people call them."""
COLUMNS = ("samples", "mean", "median", "min", "max", "p95")
SETS = {
    "performance": "Short prompts",
    "reference": "The vendor's kind of prompt",
    "quality": "Quality",
    "long_context": "Long prompts",
    "multi_turn": "Conversations",
}


def markdown(report: Report, plots: str | None) -> str:
    """The page. `plots` is the name of the file with the plots."""
    return "\n".join(_lines(report, plots)) + "\n"


def _lines(report: Report, plots: str | None) -> Iterator[str]:
    model, options = report.model, report.options
    yield f"# {_text(model.id)}\n"
    verdict = "The figures count." if report.valid else "**The figures do not count:**"
    yield f"Measured {report.taken_at} in {report.seconds:.0f} s, `bench model` {report.version}. {verdict}\n"
    yield from (f"- {_text(fault)}" for fault in report.faults)
    if report.faults:
        yield ""
    yield from _facts(report)
    if report.notes:
        yield ""
        yield from (f"- {_text(note)}" for note in report.notes)
    yield f"\nType {options.type}, {options.runs} runs after a warm-up, concurrency {', '.join(map(str, options.concurrency))}.\n"
    if plots is not None:
        yield f"![Speed by run, and first token by length of prompt]({plots})\n"
    if report.vendor is not None:
        yield from _vendor(report)
    for name, title in SETS.items():
        yield from _set(report, name, title)
    yield from _checked(report.samples)
    yield from _conversations(report.samples)


def _facts(report: Report) -> Iterator[str]:
    model, warm = report.model, report.warm_up
    facts = {
        "engine": f"{model.engine}, {model.engine_version}" if model.engine_version else model.engine,
        "quantization": model.quantization,
        "context": f"{model.context_length:,} tokens",
        "file": f"{model.size_bytes / 1e6:,.0f} MB" if model.size_bytes else "",
        "service": report.service_version or "",
        "loading": f"{warm.load_ms / 1000:.1f} s" if warm.load_ms else "it was loaded already",
    }
    for seen in report.conditions:
        words = [seen.machine, seen.soc, f"driver {seen.driver}" if seen.driver else None]
        words.append(f"{seen.hottest:.0f} °C at the most" if seen.hottest is not None else None)
        if seen.least_available_bytes is not None:
            words.append(f"{seen.least_available_bytes >> 20} MiB of memory left at the least")
        facts[f"board {seen.board}"] = ", ".join(word for word in words if word)
    yield "| | |\n|---|---|"
    yield from (f"| {_text(name)} | {_text(value)} |" for name, value in facts.items() if value)


def _vendor(report: Report) -> Iterator[str]:
    vendor = report.vendor
    assert vendor is not None
    yield "## Beside the vendor's figures\n"
    yield (
        f"Rockchip's benchmark of release {vendor.release}: {vendor.model} {vendor.size} {vendor.dtype} on {vendor.soc}, "
        f"{vendor.prompt_tokens} tokens read and {vendor.new_tokens} said. Ours are medians.\n"
    )
    yield "| | measured | vendor | ratio |\n|---|---|---|---|"
    yield from (_beside(each) for each in vendor.compared)
    yield ""


def _beside(each: Compared) -> str:
    ours, theirs = (f"{number(value)} {each.unit}" for value in (each.measured, each.vendor))
    return f"| {NAMES[each.measure]} | {ours} | {theirs} | {each.ratio:.3f} |"


def _set(report: Report, name: str, title: str) -> Iterator[str]:
    rows = [row for row in report.summary if row.set == name]
    if not rows:
        return
    yield f"## {title}\n"
    for level in dict.fromkeys(row.concurrency for row in rows):
        if level > 1:
            rounds = [each.tokens_per_s for each in report.rounds if each.concurrency == level]
            together = f": {number(sum(rounds) / len(rounds))} tokens/s together" if rounds else ""
            yield f"{level} at once{together}\n"
        yield "| | " + " | ".join(COLUMNS) + " |\n|---" + "|---" * len(COLUMNS) + "|"
        yield from (_summary(row) for row in rows if row.concurrency == level)
        yield ""
    if name == "long_context":
        yield from _by_length([sample for sample in report.samples if sample.set == name])
    failed = [sample for sample in report.samples if sample.set == name and sample.error is not None]
    yield from (f"- {_text(sample.prompt)}, run {sample.run}: {_text(sample.error or '')}" for sample in failed)
    if failed:
        yield ""


def _summary(row: Summary) -> str:
    values = (row.mean, row.median, row.min, row.max, row.p95)
    return f"| {NAMES[row.measure]}, {row.unit} | {row.samples} | " + " | ".join(map(number, values)) + " |"


def _by_length(samples: Sequence[Sample]) -> Iterator[str]:
    yield "| tokens read | first token | prefill |\n|---|---|---|"
    for sample in samples:
        if sample.error is None and sample.first_token_ms is not None and sample.prompt_tokens is not None:
            read = sample.prompt_tokens - (sample.cached_tokens or 0)
            speed = f"{number(sample.prefill_tokens_per_s)} tokens/s" if sample.prefill_tokens_per_s else ""
            yield f"| {read} | {number(sample.first_token_ms)} ms | {speed} |"
    yield ""


def passed(samples: Sequence[Sample]) -> str:
    """What the checks of answers found, in the terms of `bench compare` too; empty where there are none."""
    prompts = [mean(checks.values()) for checks in passed_checks(samples).values()]
    if not prompts:
        return ""
    checked = [sample for sample in samples if sample.checks]
    good = sum(all(verdict.passed for verdict in sample.checks) for sample in checked)
    return (
        f"Checks passed: {mean(prompts):.0%}, over {len(prompts)} prompt{'s' * (len(prompts) > 1)}; "
        f"{good} of {len(checked)} answers passed all of theirs"
    )


def _checked(samples: Sequence[Sample]) -> Iterator[str]:
    checked = [sample for sample in samples if sample.checks]
    if not checked:
        return
    yield f"## What the answers were worth\n\n{passed(samples)}.\n"
    yield "| prompt | run | passed | what is missing |\n|---|---|---|---|"
    for sample in checked:
        missing = ", ".join(verdict.what for verdict in sample.checks if not verdict.passed)
        count = f"{sum(verdict.passed for verdict in sample.checks)} of {len(sample.checks)}"
        yield f"| {_text(sample.set)}: {_text(sample.prompt)} | {sample.run} | {count} | {_text(missing)} |"
    yield ""


def _conversations(samples: Sequence[Sample]) -> Iterator[str]:
    yield "## Prompts and answers\n\nThose of the first run, one at a time. The JSON report has all of them."
    for sample in samples:
        if sample.run == 1 and sample.concurrency == 1 and sample.messages:
            yield f"\n### {_text(sample.set)}: {_text(sample.prompt)}\n"
            yield fenced(_short(sample.messages[-1]["content"]))
            yield ""
            yield fenced(sample.answer) if sample.error is None else _text(sample.error)


def fenced(text: str) -> str:
    """A block that the text cannot end, whatever a model says."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _short(text: str) -> str:
    return text if len(text) <= 4000 else f"{text[:2000]}\n… {len(text) - 4000:,} characters …\n{text[-2000:]}"


def _text(text: str) -> str:
    """What somebody else wrote, within a line of Markdown."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def number(value: float) -> str:
    """As many digits as mean something."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
