"""One run of `bench overhead`: a private service, every measurement on it, the report."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from ops.bench import report
from ops.bench.figures import Figure
from ops.bench.overhead import BRIEF, FULL, Scale, measurements
from ops.bench.processes import machine
from ops.bench.service import Service

QUIET = 10.0
"""Percent of the machine that other programs may use without it being said."""


def run(*, quick: bool, json_file: Path | None, share: float | None = None, scale: Scale | None = None) -> int:
    """Measure and print; 0, or 1 when something could not be measured. Budgets decide nothing.

    `share` is that of one core to which the service is confined. Raises `NotConfined`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is started here is stopped here
    begun, facts = time.monotonic(), machine()
    figures: dict[str, Figure] = {}
    failures: dict[str, str] = {}
    busy = float(facts["busy_percent_at_start"])
    if busy > QUIET:
        say(f"Other programs keep {busy:.0f} % of this machine busy: times and CPU will read too high.")
    if share is not None:
        facts["confined_to_cores"] = round(share, 4)
        say("The budgets are those of a service that has two cores.")
    confined = f", confined to {100 * share:.0f} % of one core" if share is not None else ""
    say(f"starting a private service{confined} …")
    with Service(share) as service:
        for name, measure in measurements(scale or (BRIEF if quick else FULL)).items():
            say(f"measuring: {name} …")
            try:
                figures |= {figure.id: figure for figure in measure(service)}
            except (OSError, RuntimeError, ValueError, LookupError) as error:
                failures[name] = f"{type(error).__name__}: {error}"
                say(f"  failed: {failures[name]}")
    seconds = time.monotonic() - begun
    print("\n".join(report.table(figures)))
    print("\n" + "\n".join(report.details(figures)))
    if json_file is not None:
        said = report.as_json(figures, failures, facts, quick=quick, seconds=seconds)
        json_file.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"took {seconds:.0f} s on {facts['cores']} cores, {busy:.0f} % busy with other programs before it began")
    return 1 if failures else 0


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)
