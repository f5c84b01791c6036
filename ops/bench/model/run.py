"""One run of `bench model`: each model in turn, its report as a table, JSON, Markdown and plots."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from npu.errors import NpuError
from ops.bench.model import vendor
from ops.bench.model.conditions import Watch
from ops.bench.model.course import Course, Scale
from ops.bench.model.markdown import markdown
from ops.bench.model.plots import svg
from ops.bench.model.prompts import Prompts
from ops.bench.model.report import SCHEMA, ModelFacts, Options, Report, dumped, summed_up
from ops.bench.model.sample import Asker
from ops.service import Service, ServiceError
from tasks.version import VERSION

FAILED, INVALID = 1, 3
"""Exit codes: something could not be measured; all was, and does not count."""
NOT_A_MODEL = "echo"
"""The engine whose models are measured only when they are named: it computes nothing."""

Show: TypeAlias = Callable[[str, int], None]


class NothingToMeasure(NpuError):
    """Raised when the service has no such model, or none that answers; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    kind: str
    scale: Scale
    quick: bool
    prompts: Prompts
    prompts_name: str
    out: Path
    vendor: dict[str, Any] | None


def choose(service: Service, names: Sequence[str]) -> list[dict[str, Any]]:
    """The models to measure: those that were named, else all that chat. Raises `NothingToMeasure`, `ServiceError`."""
    if names:
        chosen = [service.model(name) for name in names]
        for model in chosen:
            if "chat" not in model["capabilities"]:
                raise NothingToMeasure(f"{model['id']} answers no chats, which is what is measured.")
        return chosen
    chosen = [
        model
        for model in service.models()
        if "chat" in model["capabilities"] and model["meta"]["engine"] != NOT_A_MODEL and model["parent"] is None
    ]
    if not chosen:
        raise NothingToMeasure("The service has no model that chats, besides echoes; name one.")
    return chosen


def measure(service: Service, model: dict[str, Any], wish: Wish) -> Report:
    """Measure one model. Raises `ServiceError` when it does not even answer once."""
    begun = time.monotonic()
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    asker = Asker(service, model["id"], model["meta"]["refuses"])
    course = Course(asker, wish.prompts, wish.kind, wish.scale, model["context_length"])
    warm_up = course.warm_up()
    if warm_up.error is not None:
        raise ServiceError(f"{model['id']} does not answer: {warm_up.error}")
    with Watch(service) as watch, _progress(model["id"], course.answers()) as show:
        course.run(show)
    meta = service.model(model["id"])["meta"]  # once more: some is known only when it is loaded
    seen = watch.seen({sample.board for sample in course.samples if sample.board is not None} or set(meta["boards"]))
    faults = [fault for conditions in seen for fault in conditions.faults()]
    notes = [*course.notes, *_notes(meta, watch)]
    notes += [f"{each.board} does not tell: {', '.join(each.not_told())}." for each in seen if each.not_told()]
    platform = (meta["last_load"] or {}).get("platform") or next((each.soc for each in seen if each.soc), None)
    row = wish.vendor or vendor.find(platform, [meta["id"], *meta["names"]], meta["quantization"])
    return Report(
        schema=SCHEMA,
        command="bench model",
        version=VERSION,
        service_version=next((each.version for each in seen if each.version), None),
        taken_at=taken_at,
        seconds=round(time.monotonic() - begun, 1),
        options=Options(wish.kind, wish.scale.runs, wish.quick, list(wish.scale.concurrency), wish.prompts_name),
        model=ModelFacts(
            id=meta["id"],
            engine=meta["engine"],
            engine_version=meta["engine_version"],
            quantization=meta["quantization"],
            context_length=model["context_length"],
            size_bytes=meta["size_bytes"],
        ),
        valid=not faults,
        faults=faults,
        notes=notes,
        warm_up=warm_up,
        summary=summed_up(course.samples),
        rounds=course.rounds,
        vendor=vendor.beside(row, course.samples) if row is not None else None,
        conditions=seen,
        samples=course.samples,
    )


def write(report: Report, folder: Path) -> list[Path]:
    """The report's files, named by model and time. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{file_name(report.model.id)}-{report.taken_at[:19].replace(':', '')}"
    drawing = svg(report)
    texts = {".json": dumped(report), ".md": markdown(report, f"{stem}.svg" if drawing is not None else None).encode()}
    if drawing is not None:
        texts[".svg"] = drawing.encode()
    for ending, data in texts.items():
        (folder / (stem + ending)).write_bytes(data)
    return [folder / (stem + ending) for ending in texts]


def file_name(model: str) -> str:
    """A model's name as the beginning of a file's: whatever it is, it names no folder and hides no file."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", model).lstrip(".-")[:100] or "model"


def exit_code(reports: Sequence[Report]) -> int:
    """0 when everything was measured and counts."""
    if any(sample.error is not None for report in reports for sample in report.samples):
        return FAILED
    return 0 if all(report.valid for report in reports) else INVALID


def _notes(meta: dict[str, Any], watch: Watch) -> Iterator[str]:
    if "temperature" in meta["refuses"]:
        yield f"It was not asked for its likeliest answers, since it cannot: {meta['refuses']['temperature']}"
    if watch.refused is not None:
        yield f"Nobody could look at the boards meanwhile: {watch.refused}"


@contextmanager
def _progress(model: str, answers: int) -> Iterator[Show]:
    if not sys.stderr.isatty():
        said: set[str] = set()

        def tell(name: str, count: int) -> None:
            if name not in said:
                said.add(name)
                print(f"{model}: {name.replace('_', ' ')} …", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(model, total=answers)

        def show(name: str, count: int) -> None:
            bars.update(task, description=f"{model}: {name.replace('_', ' ')}", advance=count)

        yield show
