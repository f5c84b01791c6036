"""A board that is reckoned: what it has in hand and in its cache, and how long it takes to read a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from npu.engines.rkllm.loaded_model import SLICE_STEP, slice_seconds
from npu.simulator.profile import Profile
from tasks.claims import Claim


@dataclass(slots=True)
class Held:
    """A job that a board has in hand. Times are milliseconds."""

    claim: Claim
    place: int
    began: float
    cached: int
    to_read: int
    prefill: float
    stops: list[float]
    """Since it began: when a pause can be heard while the prompt is read."""
    said_before: int
    """Tokens that were said when it began."""


@dataclass(slots=True)
class Board:
    """One board and what it did."""

    name: str
    profile: Profile
    held: Held | None = None
    run: int = 0
    """Counts what it began, so that the end of what was paused is none."""
    conversation: str | None = None
    prefix: str | None = None
    resident: int = 0
    """Tokens of that conversation in its cache."""
    prefix_tokens: int = 0
    busy: float = 0.0
    answered: int = 0
    tokens: int = 0

    @property
    def token_ms(self) -> float:
        """What saying one takes."""
        return 1000 / self.profile.decode_tps if self.profile.decode_tps else 0.0


def prefill_of(board: Board, tokens: int) -> tuple[float, list[float]]:
    """How many milliseconds reading them takes, and when, since its start, a slice of it ends."""
    pace = board.profile.prefill_tps
    if not pace:
        return 0.0, []
    size = max(SLICE_STEP, int(pace * slice_seconds(board.token_ms / 1000)) // SLICE_STEP * SLICE_STEP)
    stops: list[float] = []
    at, took = size, 0.0
    while at < tokens:
        took += size * 1000 / pace + board.token_ms  # each slice ends with a token that nobody wants
        stops.append(took)
        at += size
    return took + (tokens - (at - size)) * 1000 / pace, stops
