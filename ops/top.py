"""What a service is at: its boards, queues and jobs, once or as a view that is kept up to date."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ops.service import Service, ServiceAway, ServiceError

LOOK = 1.0
"""Seconds between two looks."""
MOST_JOBS = 20
"""Shown at once; the newest."""
NARROW = 70
"""Columns of a terminal below which tables leave some of theirs out."""


def look(service: Service) -> dict[str, Any]:
    """Its boards and queues, and what runs and waits, which is None where the key may not see that. Raises `ServiceError`."""
    found: dict[str, Any] = {"boards": service.living_boards(), "queues": service.queues()}
    try:
        found["jobs"] = service.jobs("active", MOST_JOBS)
    except ServiceAway:
        raise
    except ServiceError as error:
        found |= {"jobs": None, "jobs_refused": str(error)}
    return found


def view(found: dict[str, Any], width: int = 80) -> Group:
    """The same for people whose terminal has so many columns; a narrow one gets what matters most."""
    narrow = width < NARROW
    parts: list[Table | Text] = [_boards(found["boards"], narrow), Text(), _queues(found["queues"], narrow), Text()]
    if found["jobs"] is None:
        parts.append(Text(found["jobs_refused"]))
    elif found["jobs"]:
        parts.append(_jobs(found["jobs"], narrow))
    else:
        parts.append(Text("Nothing runs and nothing waits."))
    return Group(*parts)


def watch(service: Service) -> None:
    """Keep the view up to date until somebody types q, through times in which the service is away. Raises `ServiceError`."""
    console = Console()
    shown = view(look(service), console.width)
    with _keys(), Live(shown, console=console, screen=True, auto_refresh=False) as live:
        while not _left(LOOK):
            try:
                shown = view(look(service), console.width)
                live.update(shown, refresh=True)
            except ServiceAway as error:
                live.update(Group(Text(f"{error} Waiting for it to come back."), Text(), shown), refresh=True)


def _boards(boards: list[dict[str, Any]], narrow: bool) -> Table:
    names = ("BOARD", "CHIP", "NPU", "°C", "FREE MEMORY", "MODELS")
    rows: list[tuple[str, ...]] = []
    for board in boards:
        load, heat, memory = board["npu_load"], board["temperature"], board["memory"]
        rows.append(
            (
                board["id"] + (" (drained)" if board["drained"] else ""),
                board["soc"] or board["machine"] or "-",
                " ".join(f"{core}%" for core in load) if load else "-",
                (f"{heat:.0f}" if heat else "-") + (" (hot)" if board.get("hot") else ""),
                f"{memory['available'] >> 20} of {memory['total'] >> 20} MiB" if memory else "-",
                ", ".join(f"{model['id']} {model['state']}" for model in board["models"]),
            )
        )
    return _table(names, rows, ("BOARD", "°C", "MODELS") if narrow else names)


def _queues(queues: list[dict[str, Any]], narrow: bool) -> Table:
    names = ("MODEL", "QUEUE", "WAITING", "RUNNING", "NEXT IN", "TOKENS/S")
    rows: list[tuple[str, ...]] = []
    for queue in queues:
        wait = queue["estimated_wait"]
        speeds = [board["decode_tps"] for board in queue["boards"] if board.get("decode_tps")]
        rows.append(
            (
                queue["id"],
                queue["state"],
                str(queue["waiting"]),
                str(queue["running"]),
                "-" if wait is None else f"{wait:.0f} s",
                f"{sum(speeds):.1f}" if speeds else "-",
            )
        )
    return _table(names, rows, ("MODEL", "QUEUE", "WAITING") if narrow else names)


def _jobs(jobs: list[dict[str, Any]], narrow: bool) -> Table:
    names = ("JOB", "MODEL", "LANE", "STATE", "SINCE", "BOARD")
    rows: list[tuple[str, ...]] = []
    for job in jobs:
        stands = job["phase"] or job["state"]
        if job["position"] is not None:
            stands += f", position {job['position']}"
        if job.get("waits_for") not in (None, "turn"):
            stands += f", waits for {job['waits_for']}"
        since = time.strftime("%H:%M:%S", time.localtime(job["started_at"] or job["created_at"]))
        rows.append((job["id"], job["model"], job["lane"], stands, since, job["board"] or "-"))
    return _table(names, rows, ("JOB", "STATE") if narrow else names)


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]], kept: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in kept:
        table.add_column(name, no_wrap=name == "JOB", min_width=len(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for name, cell in zip(names, row, strict=True) if name in kept))
    return table


@contextmanager
def _keys() -> Iterator[None]:
    """Have each key at once, where there is a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _left(seconds: float) -> bool:
    """Whether somebody types q within this time."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            typed = os.read(sys.stdin.fileno(), 64)
            if not typed or b"q" in typed.lower():
                return True
    return False
