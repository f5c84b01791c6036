"""How far a pull is, on a terminal, in a log, or for a program."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from tasks.commands import PullProgress, PullStep

NARROW = 70
"""Columns of a terminal below which there is a count instead of a bar, for the name to be read."""


class _Bar(Protocol):
    def __call__(self, progress: PullProgress) -> None: ...


def show(steps: Iterable[PullProgress], *, as_json: bool) -> None:
    """Show each step as it comes: a bar on a terminal, lines elsewhere, or JSON on standard output."""
    if as_json:
        for progress in steps:
            print(msgspec.json.encode(progress).decode(), flush=True)
        return
    said = ""
    with _bar() as bar:
        for progress in steps:
            if progress.message and progress.message != said:
                said = progress.message
                print(said, flush=True)
            if progress.step in (PullStep.FETCHING, PullStep.VERIFYING):
                bar(progress)
            elif progress.step is PullStep.DONE:
                print(f"Ready: {progress.id}", flush=True)


def steps_of(model: str, lines: Iterable[dict[str, Any]]) -> Iterator[PullProgress]:
    """The steps that a service elsewhere tells of, as Ollama's API says them. What is not told stays empty: the model's id is the
    name that was asked for."""
    file = ""
    for number, line in enumerate(lines):
        status = str(line["status"])
        step, message, done = PullStep.CHOOSING, "", 0
        if "completed" in line:
            step, done = PullStep.FETCHING, int(line["completed"])
            file = line.get("file", status.removeprefix("pulling "))  # a service of an earlier release tells no names
        elif status == "verifying sha256 digest":
            step = PullStep.VERIFYING
        elif status == "writing manifest":
            step = PullStep.PLACING
        elif status == "success":
            step = PullStep.DONE
        elif status != "pulling manifest":  # with a word to say
            message = status
        yield PullProgress(
            pull="",
            model=model,
            number=number,
            step=step,
            message=message,
            file=file,
            digest=str(line.get("digest", "")),
            completed=done,
            total=line.get("total"),
            id=model if step is PullStep.DONE else "",
        )


@contextmanager
def _bar() -> Iterator[_Bar]:
    if not sys.stderr.isatty():
        yield _Tenths()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    console = Console(stderr=True)
    if console.width < NARROW:
        name = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns: tuple[ProgressColumn, ...] = (name, DownloadColumn(table_column=Column(no_wrap=True)))
    else:
        columns = (
            TextColumn("{task.description}"),
            *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
        )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def update(progress: PullProgress) -> None:
            what = progress.file if progress.step is PullStep.FETCHING else f"verifying {progress.file}"
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=progress.total)
            bars.update(tasks[what], completed=progress.completed, total=progress.total)

        yield update


class _Tenths:
    """A line for each tenth of a file."""

    def __init__(self) -> None:
        self._told: tuple[str, int] = ("", -1)

    def __call__(self, progress: PullProgress) -> None:
        if progress.step is not PullStep.FETCHING or not progress.total:
            return
        tenth = (progress.file, progress.completed * 10 // progress.total)
        if tenth != self._told:
            self._told = tenth
            done, total = progress.completed / 1e6, progress.total / 1e6
            print(f"  {progress.file}: {done:,.0f} of {total:,.0f} MB", file=sys.stderr, flush=True)
