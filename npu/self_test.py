"""What trying a model out has shown: the verdicts, as its card and the doctor tell them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a test came to."""

    SANE = "sane"
    SUSPECT = "suspect"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test of a model showed. None and UNKNOWN are what could not be told, or what time did not allow."""

    text: Verdict = Verdict.UNKNOWN
    """Whether simple questions are answered."""
    said: str = ""
    """What was said to the first of them, when the text is suspect."""
    reuse: bool | None = None
    """Whether a prompt that begins as the last one is not prefilled from its start."""
    counts_cached: bool = False
    """Whether the runtime's count of prefilled tokens has those in it that it reused."""
    abort_ms: float | None = None
    """From an abort between two tokens to the end of the run."""
    logits: Verdict = Verdict.UNKNOWN
    """Whether the likeliest tokens by the logits are those the runtime chooses."""
    logits_ms: float | None = None
    """One token by its logits."""
    prefill_tps: float | None = None
    """Tokens of a prompt read per second."""
    decode_tps: float | None = None
    """Tokens said per second."""
    parks: bool | None = None
    """Whether what was read of a conversation can be written to memory and loaded again, rightly, and faster than it is read."""
    not_parked: str = ""
    """Why not, as a clause."""
    park_ms: float | None = None
    """To write a token of it."""
    unpark_ms: float | None = None
    """To load one again."""
    parked_bytes: int | None = None
    """What a token takes in memory then."""
    in_time: bool = True
    """Whether nothing was left out for want of time."""

    def story(self) -> str:
        """A sentence for the model's user."""
        parts = [f"text {self.text}"]
        if self.reuse is not None:
            parts.append("a prefix is prefilled once" if self.reuse else "a prefix is prefilled every time")
        else:
            parts.append("reuse of prefixes unknown")
        if self.counts_cached:
            parts.append("the runtime counts reused tokens as prefilled")
        parts.append(f"logits {self.logits}" + (f" ({self.logits_ms:.0f} ms a token)" if self.logits_ms else ""))
        if self.abort_ms is not None:
            parts.append(f"an abort takes {self.abort_ms:.0f} ms")
        if self.prefill_tps and self.decode_tps:
            parts.append(f"{self.prefill_tps:.0f} tokens a second read and {self.decode_tps:.1f} said")
        if self.parks and self.park_ms is not None and self.unpark_ms is not None and self.parked_bytes is not None:
            figures = f"{self.park_ms:.2f} and {self.unpark_ms:.2f} ms a token, {self.parked_bytes / 1e3:.0f} KB"
            parts.append(f"conversations can be parked in memory and loaded again ({figures})")
        elif self.not_parked:
            parts.append(f"conversations are not parked: {self.not_parked}")
        late = " It ran out of time: what is unknown is tried with the next load." if not self.in_time else ""
        return f"Self-test: {', '.join(parts)}.{late}"
