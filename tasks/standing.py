"""How a model's queue stands, and how long a place in it is likely to mean."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

UNTRIED = 10.0
"""Seconds that a job is expected to take while nobody knows how long a model's jobs take: most likely it is being loaded."""


class Gate(StrEnum):
    """What an administrator lets through a queue. A word stands in Redis for every one that is not open."""

    OPEN = "open"
    PAUSED = "paused"
    """Jobs are accepted, and none is begun; what runs goes on."""
    DRAINING = "draining"
    """Jobs are refused; those that wait are served."""


class Standing(msgspec.Struct, frozen=True):
    """A queue at one moment: its gate, how many jobs run, and in about how many seconds a worker takes the next one."""

    gate: Gate
    running: int
    pace: float

    def wait(self, place: int) -> float | None:
        """Seconds that a job with so many others before it is likely to wait; None: for as long as the queue is paused."""
        if self.gate is Gate.PAUSED:
            return None
        return (place + (self.running > 0)) * self.pace


def read_standing(reply: list[Any]) -> Standing:
    """What `standing` of the scripts says: gate, jobs that run, milliseconds."""
    gate, running, ms = reply
    return Standing(read_gate(gate), running, ms / 1000 or UNTRIED)


def read_gate(kept: bytes | None) -> Gate:
    """The gate as it is kept."""
    return Gate(kept.decode()) if kept else Gate.OPEN
