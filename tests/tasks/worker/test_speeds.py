"""How fast a worker is said to be."""

from __future__ import annotations

from tasks.worker.generate import Totals
from tasks.worker.speeds import Speeds


def job(prompt: int, cached: int, prefill_ms: float, tokens: int, decode_ms: float) -> Totals:
    return Totals(
        prompt_tokens=prompt, cached_tokens=cached, completion_tokens=tokens, prefill_ms=prefill_ms, decode_ms=decode_ms
    )


def test_the_newest_job_counts_a_quarter() -> None:
    """Of what was computed: a prefix that was kept says nothing."""
    speeds = Speeds()
    assert (speeds.prefill, speeds.decode) == (None, None)
    speeds.note(job(200, 100, 1000, 50, 5000))
    assert (speeds.prefill, speeds.decode) == (100.0, 10.0)
    speeds.note(job(200, 0, 1000, 100, 5000))
    assert (speeds.prefill, speeds.decode) == (125.0, 12.5)


def test_what_is_too_short_or_was_not_timed_says_nothing() -> None:
    """A token or two are no measurement."""
    speeds = Speeds()
    speeds.note(job(200, 100, 1000, 50, 5000))
    speeds.note(job(3, 0, 1, 2, 1))
    speeds.note(job(100, 98, 1, 100, 0))
    assert (speeds.prefill, speeds.decode) == (100.0, 10.0)
