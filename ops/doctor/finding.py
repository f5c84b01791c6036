"""What a check has to say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters, least first."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Everything works; something could be better, or is good to know."""
    WARNING = "warning"
    """Something may fail or answer wrongly, or cannot be used, and the rest works."""
    PROBLEM = "problem"
    """Something that this machine is set up for does not work."""


_ORDER = tuple(Level)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a check found."""

    level: Level
    code: str
    """What programs know it by; stable."""
    title: str
    """What is so, in one sentence."""
    explanation: str = ""
    """Why, and what follows from it."""
    command: str = ""
    """What to type to mend it, or to learn more; empty where no command does."""


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among them; `ok` when there are none."""
    return max((finding.level for finding in findings), key=_ORDER.index, default=Level.OK)
