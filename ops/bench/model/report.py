"""The report of `bench model` as JSON: these types are its schema, in `docs/bench-model.schema.json`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from npu.errors import NpuError
from ops.bench.figures import percentile
from ops.bench.model.conditions import Conditions
from ops.bench.model.course import Round
from ops.bench.model.sample import Sample

SCHEMA = 1
"""Raised when a field changes its meaning or goes away; fields may be added."""
MOST_BYTES = 200_000_000
"""A report may have."""

MEASURES = {
    "first_token_ms": "ms",
    "total_ms": "ms",
    "prefill_tokens_per_s": "tokens/s",
    "decode_tokens_per_s": "tokens/s",
    "client_tokens_per_s": "tokens/s",
    "prompt_tokens": "tokens",
    "completion_tokens": "tokens",
    "memory_mb": "MB",
}
"""What is summed up of each set of samples, fields of `Sample`, with their units."""


class ReportUnreadable(NpuError):
    """Raised for a file that is no report; the message is for the user."""


class Summary(msgspec.Struct, frozen=True):
    """One measure over the samples of a set that were asked at one concurrency."""

    set: str
    concurrency: int
    measure: str
    unit: str
    samples: int
    mean: float
    median: float
    min: float
    max: float
    p95: float


class Compared(msgspec.Struct, frozen=True):
    """A measured figure beside the vendor's. `ratio` is ours to theirs."""

    measure: str
    unit: str
    measured: float
    vendor: float
    ratio: float


class Vendor(msgspec.Struct, frozen=True):
    """The vendor's published figures for this model on this chip."""

    release: str
    """Of the vendor's runtime, whose figures these are."""
    soc: str
    model: str
    size: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    compared: list[Compared]


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the service says of the model."""

    id: str
    engine: str
    engine_version: str
    quantization: str
    context_length: int
    size_bytes: int


class Options(msgspec.Struct, frozen=True):
    """What was asked for."""

    type: str
    runs: int
    quick: bool
    concurrency: list[int]
    prompts: str
    """`built-in`, or the name of a file."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of one model."""

    schema: int
    command: str
    version: str
    """Of the program that measured."""
    service_version: str | None
    taken_at: str
    """UTC, ISO 8601."""
    seconds: float
    options: Options
    model: ModelFacts
    valid: bool
    faults: list[str]
    """Why the figures do not count; empty when they do."""
    notes: list[str]
    """What to know of them."""
    warm_up: Sample
    summary: list[Summary]
    rounds: list[Round]
    vendor: Vendor | None
    conditions: list[Conditions]
    samples: list[Sample]


def summed_up(samples: Sequence[Sample]) -> list[Summary]:
    """Every measure over every set at every concurrency, of the samples that did not fail and have it."""
    return list(_summaries([sample for sample in samples if sample.error is None]))


def _summaries(samples: Sequence[Sample]) -> Iterator[Summary]:
    for of_set, level in dict.fromkeys((sample.set, sample.concurrency) for sample in samples):
        group = [sample for sample in samples if (sample.set, sample.concurrency) == (of_set, level)]
        for measure, unit in MEASURES.items():
            values = measured(group, measure)
            if values:
                yield Summary(
                    of_set,
                    level,
                    measure,
                    unit,
                    len(values),
                    round(statistics.fmean(values), 3),
                    round(statistics.median(values), 3),
                    min(values),
                    max(values),
                    percentile(values, 0.95),
                )


def measured(samples: Sequence[Sample], measure: str) -> list[float]:
    """The values of a measure that there are."""
    return [float(value) for sample in samples if (value := getattr(sample, measure)) is not None]


def dumped(report: Report) -> bytes:
    """The report as a file has it."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_report(path: Path) -> Report:
    """The one in a file. Raises `ReportUnreadable`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ReportUnreadable(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MOST_BYTES:
        raise ReportUnreadable(f"{path} has more than {MOST_BYTES // 10**6} MB.")
    try:
        found = msgspec.json.decode(data, type=Report)
    except msgspec.DecodeError as error:
        raise ReportUnreadable(f"{path} is no report of `bench model`: {error}.") from error
    if found.command != "bench model" or found.schema != SCHEMA:
        raise ReportUnreadable(
            f"{path} is a report of `{found.command}` with schema {found.schema}; this version reads those of `bench model` "
            f"with schema {SCHEMA}."
        )
    return found


def schema() -> dict[str, Any]:
    """The JSON schema of a report."""
    return msgspec.json.schema(Report)
