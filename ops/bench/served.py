"""What became of the requests of a trace, and the figures that tell how its users fared."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ops.bench.figures import percentile
from ops.bench.trace import Ask
from tasks.jobs import Lane

STALL = 1.0
"""Seconds without a token, inside an answer, that a reader notices."""


@dataclass(frozen=True, slots=True)
class Served:
    """One request. Times are seconds from the start of the measurement."""

    ask: Ask
    sent: float
    first: float | None = None
    """When its first token came; None: none did."""
    ended: float | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    longest_gap: float = 0.0
    """Seconds between two of its tokens, at most."""
    refused: str = ""
    """Why it was not answered."""


def summary(served: Sequence[Served]) -> dict[str, Any]:
    """The figures, times in milliseconds; None where there is nothing to tell them by."""
    whole = [one for one in served if one.ended is not None and not one.refused]
    refusals: dict[str, int] = defaultdict(int)
    for one in served:
        if one.refused:
            refusals[one.refused] += 1
    span = max((one.ended or one.sent for one in served), default=0.0) - min((one.sent for one in served), default=0.0)
    tokens = sum(one.tokens for one in served)
    prompt, cached = sum(one.prompt_tokens for one in whole), sum(one.cached_tokens for one in whole)
    return {
        "requests": len(served),
        "answered": len(whole),
        "refused": dict(refusals),
        "seconds": round(span, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens / span, 3) if span else None,
        "prompt_tokens": prompt,
        "cached_share": round(cached / prompt, 3) if prompt else None,
        "lanes": {lane.value: _lane([one for one in whole if one.ask.lane is lane]) for lane in Lane},
        "fairness": _fairness(served),
    }


def _lane(served: Sequence[Served]) -> dict[str, Any]:
    waits = [(one.first - one.sent) * 1000 for one in served if one.first is not None]
    totals = [(one.ended - one.sent) * 1000 for one in served if one.ended is not None]
    gaps = [one.longest_gap for one in served]
    return {
        "answered": len(served),
        "first_token_ms": _spread(waits),
        "total_ms": _spread(totals),
        "stalls": sum(gap > STALL for gap in gaps),
        "longest_gap_ms": round(max(gaps) * 1000, 1) if gaps else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    shares = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {
        "mean": round(statistics.fmean(values), 1),
        **{name: round(percentile(values, share), 1) for name, share in shares.items()},
    }


def _fairness(served: Iterable[Served]) -> dict[str, float] | None:
    """How evenly those who chat are served, by the tokens that each got in a second of its waiting: none where all that it
    asked was refused.

    `jain` is Jain's index: 1 where all got the same, 1/N where one of N got all. `worst` is the user with the fewest, as a
    share of the median one.
    """
    got: dict[str, float] = defaultdict(float)
    waited: dict[str, float] = {}
    for one in served:
        if one.ask.lane is Lane.INTERACTIVE:
            waited.setdefault(one.ask.user, 0.0)
            if one.ended is not None and not one.refused:
                got[one.ask.user] += one.tokens
                waited[one.ask.user] += one.ended - one.sent
    paces = [got[user] / seconds if seconds else 0.0 for user, seconds in waited.items()]
    if len(paces) < 2 or not any(paces):
        return None
    return {
        "users": len(paces),
        "jain": round(sum(paces) ** 2 / (len(paces) * sum(pace**2 for pace in paces)), 3),
        "worst": round(min(paces) / (statistics.median(paces) or 1), 3),
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures for people, a line each."""
    refused = ", ".join(f"{count} {why}" for why, count in found["refused"].items())
    lines = [
        ("requests", f"{found['requests']:,}, answered {found['answered']:,}" + (f"; {refused}" if refused else "")),
        (
            "tokens said",
            f"{found['tokens']:,} in {found['seconds']:,.0f} s"
            + _with(found["tokens_per_second"], ", {:,.1f} a second"),
        ),
    ]
    if found["cached_share"] is not None:
        lines.append(("of prompts cached", f"{found['cached_share']:.0%}"))
    for lane, its in found["lanes"].items():
        if its["answered"]:
            first, total = its["first_token_ms"], its["total_ms"]
            lines += [
                (f"{lane}: answered", f"{its['answered']:,}"),
                (f"{lane}: first token", _times(first)),
                (f"{lane}: whole answer", _times(total)),
                (
                    f"{lane}: stalls over {STALL:.0f} s",
                    f"{its['stalls']:,}, longest gap {its['longest_gap_ms']:,.0f} ms",
                ),
            ]
    if found.get("boards"):
        lines.append(("boards at work", ", ".join(f"{board['utilisation']:.0%}" for board in found["boards"])))
    if found["fairness"] is not None:
        fair = found["fairness"]
        lines.append(
            (
                "fairness",
                f"{fair['jain']:.3f} of 1 among {fair['users']}, the worst has {fair['worst']:.0%} of the median",
            )
        )
    return lines


def _times(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    return f"p50 {spread['p50']:,.0f} ms, p95 {spread['p95']:,.0f} ms, at most {spread['max']:,.0f} ms"


def _with(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def replay(served: Sequence[Served]) -> list[Ask]:
    """The same traffic as a trace, with the lengths that prompts and answers really had; without what was refused."""
    said: dict[str, int] = {}
    asks = []
    for one in served:
        if one.refused or not one.tokens:
            continue
        ask, earlier = one.ask, said.get(one.ask.conversation or "", 0)
        new = one.prompt_tokens - (earlier or ask.prefix_tokens)
        asks.append(msgspec.structs.replace(ask, prompt_tokens=max(1, new), answer_tokens=one.tokens))
        if ask.conversation is not None:
            said[ask.conversation] = one.prompt_tokens + one.tokens
    return asks
