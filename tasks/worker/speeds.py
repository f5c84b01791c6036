"""How fast a worker is: what the jobs it has ended took, lately."""

from __future__ import annotations

from tasks.worker.generate import Totals

FEWEST = 4
"""Tokens from which on a job says something about speed."""


class Speeds:
    """Tokens per second, the newest job counting a quarter; None before any has said something."""

    def __init__(self) -> None:
        self.prefill: float | None = None
        self.decode: float | None = None

    def note(self, totals: Totals) -> None:
        """One more job has ended, which this worker had from its beginning."""
        self.prefill = _mixed(self.prefill, totals.prompt_tokens - totals.cached_tokens, totals.prefill_ms)
        self.decode = _mixed(self.decode, totals.completion_tokens, totals.decode_ms)


def _mixed(before: float | None, tokens: int, ms: float) -> float | None:
    if tokens < FEWEST or ms <= 0:
        return before
    new = tokens / ms * 1000
    return round(new if before is None else before + (new - before) / 4, 1)
