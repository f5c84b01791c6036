"""Runs the checks and tells what they found, to people or to programs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ops.doctor import driver, machine, models, service
from ops.doctor.facts import Facts
from ops.doctor.finding import Finding, Level, worst
from ops.fold import columns

CHECKS: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    machine.check_chip,
    machine.check_device_tree,
    driver.check_driver,
    driver.check_node,
    driver.check_library,
    machine.check_clocks,
    machine.check_heat,
    machine.check_open_files,
    machine.check_memory,
    models.check_files,
    models.check_contexts,
    models.check_use_of_npu,
    models.check_chip_of_models,
    models.check_pairs,
    models.check_self_tests,
    models.check_chat,
    service.check_python,
    service.check_disk,
    service.check_redis,
    service.check_settings,
)
"""All there are, in the order they are told in."""

FORMAT = 1
"""Raised when a program that reads the JSON would have to be changed."""

_WIDTH = 110
_INDENT = " " * 9
_PLURALS = {Level.PROBLEM: "problem", Level.WARNING: "warning", Level.NOTE: "note"}


def examine(facts: Facts) -> tuple[Finding, ...]:
    """What every check says."""
    return tuple(finding for check in CHECKS for finding in check(facts))


def exit_code(findings: Iterable[Finding]) -> int:
    """1 when there is a problem; warnings and notes are 0."""
    return 1 if worst(findings) is Level.PROBLEM else 0


def to_json(facts: Facts, findings: tuple[Finding, ...]) -> dict[str, Any]:
    """One object: `format`, `verdict` (the gravest level), `findings`; `machine`, `library` and `models` with what was seen."""
    found = facts.library.found if facts.library is not None else None
    return {
        "format": FORMAT,
        "verdict": str(worst(findings)),
        "findings": [asdict(finding) for finding in findings],
        "machine": asdict(facts.board),
        "library": {**asdict(found), "path": str(found.path)} if found is not None else None,
        "models": [
            {**asdict(model), "path": str(model.path) if model.path is not None else None} for model in facts.models
        ],
    }


def to_text(facts: Facts, findings: tuple[Finding, ...]) -> Iterator[str]:
    """Lines for a person: the machine, the findings with the gravest first, the sum."""
    board = facts.board
    chip = [board.soc.name] if board.soc is not None else []
    about = ", ".join([*chip, f"{board.cores} CPU cores", f"{board.memory.total / 1e9:.1f} GB of memory"])
    yield f"{board.model or 'This machine'}: {about}"
    for level in reversed(Level):
        chosen = [finding for finding in findings if finding.level is level]
        if chosen:
            yield ""
        for finding in chosen:
            yield from _lines(finding)
    yield ""
    yield _sum(findings)


def _lines(finding: Finding) -> Iterator[str]:
    yield from _wrapped(finding.title, f"{finding.level:<9}")
    if finding.explanation:
        yield from _wrapped(finding.explanation, _INDENT)
    if finding.command:
        yield f"{_INDENT}$ {finding.command}"  # Never wrapped: it is there to be copied.


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(
        text,
        min(_WIDTH, columns() or _WIDTH),
        initial_indent=first,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sum(findings: tuple[Finding, ...]) -> str:
    counts = Counter(finding.level for finding in findings)
    told = [
        f"{counts[level]} {word}{'s' * (counts[level] > 1)}" for level, word in _PLURALS.items() if counts[level] > 0
    ]
    return f"{', '.join(told)}." if told else "Everything is as it should be."
