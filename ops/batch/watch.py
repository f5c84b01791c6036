"""How far a batch is: on a terminal, in a log, or for a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from ops.batch.pace import Pace, duration
from ops.batch.plot import Moment
from ops.service import OVER, Service, ServiceAway

LOOK = 1.0
"""Seconds between two looks."""
SOON = 0.2
"""The same, while the lines of a batch are checked."""
PATIENCE = 60.0
"""Seconds that this may take before nobody waits for it any more; 100,000 lines take a few."""

Show: TypeAlias = Callable[[dict[str, Any], Pace, dict[str, float]], None]


def watch(service: Service, batch: str, *, as_json: bool = False, seen: list[Moment] | None = None) -> dict[str, Any]:
    """Look at it until it is over, through times in which the service is away; the batch then. What was `seen` is added
    there. Raises `ServiceError`."""
    pace = Pace()
    away = False
    found = service.batch(batch)
    with _shown(as_json) as show:
        while True:
            try:
                now = time.monotonic()
                pace.look(found, now)
                if seen is not None:
                    counts = found["request_counts"]
                    done = counts["completed"] + counts["failed"]
                    seen.append(Moment(now, done, found["usage"]["output_tokens"]))
                boards = service.boards() if found["status"] == "in_progress" else {}
                show(found, pace, boards)
                away = False
                if found["status"] in OVER:
                    return found
                time.sleep(LOOK)
                found = service.batch(batch)
            except ServiceAway as error:
                if not away:
                    print(f"{error} Waiting for it.", file=sys.stderr, flush=True)
                away = True
                time.sleep(LOOK)


def checked(service: Service, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch once its input was looked through, at most `PATIENCE` seconds later. Raises `ServiceError`."""
    end = time.monotonic() + PATIENCE
    while batch["status"] == "validating" and time.monotonic() < end:
        time.sleep(SOON)
        with suppress(ServiceAway):
            batch = service.batch(batch["id"])
    return batch


def told(batch: dict[str, Any]) -> str:
    """A batch that is over, in words."""
    counts, usage = batch["request_counts"], batch["usage"]
    words = f"{batch['id']} {batch['status']}: {counts['completed']} of {counts['total']} answered"
    if counts["failed"]:
        words += f", {counts['failed']} not"
    began, ended = batch["in_progress_at"], batch.get(f"{batch['status']}_at")
    if began and ended:
        words += f", in {duration(ended - began)}"
    words += f"; {usage['input_tokens']:,} tokens read, {usage['output_tokens']:,} said."
    for problem in (batch["errors"] or {"data": []})["data"]:
        line = f"line {problem['line']}: " if problem["line"] else ""
        words += f"\n  {line}{problem['message']}"
    return words


def went_well(batch: dict[str, Any]) -> bool:
    """Whether every request was answered."""
    return bool(batch["status"] == "completed" and not batch["request_counts"]["failed"])


@contextmanager
def _shown(as_json: bool) -> Iterator[Show]:
    if as_json:
        yield _Lines(_print_json)
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _Lines(_print_line)


class _Lines:
    """A line for each state, and for each tenth of it."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._told: tuple[str, int] | None = None

    def __call__(self, batch: dict[str, Any], pace: Pace, boards: dict[str, float]) -> None:
        counts = batch["request_counts"]
        done = counts["completed"] + counts["failed"]
        now = (batch["status"], done * 10 // counts["total"] if counts["total"] else 0)
        if now != self._told:
            self._told = now
            self._show(batch, pace, boards)


def _print_json(batch: dict[str, Any], pace: Pace, boards: dict[str, float]) -> None:
    said = {"tokens_per_second": pace.tokens, "seconds_left": pace.left, "boards": boards}
    print(json.dumps({**batch, "progress": said}), flush=True)


def _print_line(batch: dict[str, Any], pace: Pace, boards: dict[str, float]) -> None:
    counts = batch["request_counts"]
    words = f"{batch['status']}: {counts['completed']} of {counts['total']} done, {counts['failed']} failed"
    print(f"{words}{_speed(pace, boards)}", file=sys.stderr, flush=True)


def _speed(pace: Pace, boards: dict[str, float]) -> str:
    words = f" · {pace.tokens:,.0f} tokens/s" if pace.tokens else ""
    if boards:
        words += " (" + ", ".join(f"{name} {speed:,.0f}" for name, speed in sorted(boards.items())) + ")"
    return words + (f" · {duration(pace.left)} left" if pace.left else "")


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None, speed="")

        def show(batch: dict[str, Any], pace: Pace, boards: dict[str, float]) -> None:
            counts = batch["request_counts"]
            failed = f"{counts['failed']} failed" if counts["failed"] else ""
            bars.update(
                task,
                description=batch["status"],
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
                speed=f"{failed}{_speed(pace, boards)}".removeprefix(" · "),
            )

        yield show
