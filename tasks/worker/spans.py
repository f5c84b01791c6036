"""What a worker says of a job to those who trace the request it was accepted for."""

from __future__ import annotations

import time

from tasks.claims import Claim
from tasks.jobs import Phase
from tasks.tracing import Tracing, within
from tasks.worker.job_run import JobRun


class JobSpans:
    """Each claim of a job is a span beside its wait, with a span for each of its phases.

    Their times are made of the service's clock, at the claim, and of how long things took since: clocks of boards jump.
    """

    def __init__(self, tracing: Tracing, board: str) -> None:
        self._tracing = tracing
        self._board = board

    def tell(self, run: JobRun, outcome: str) -> None:
        """The claim has ended, as the words say."""
        claim = run.claim
        if not claim.trace:
            return
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        tracer, parent = self._tracing.tracer, within(claim.trace)
        about = _about(claim) | {"rockchipllama.board": self._board}
        tracer.start_span("queue", parent, attributes=about, start_time=claim.since * _MS).end(claim.started * _MS)

        def at(moment: float) -> int:
            return claim.started * _MS + int((moment - run.claimed) * 1e9)

        now, totals = time.monotonic(), run.totals
        about |= {
            "rockchipllama.outcome": outcome,
            "gen_ai.usage.input_tokens": totals.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": totals.cached_tokens,
            "gen_ai.usage.output_tokens": totals.completion_tokens,
        }
        span = tracer.start_span(
            f"job {claim.model}", parent, kind=SpanKind.CONSUMER, attributes=about, start_time=at(run.claimed)
        )
        if outcome.startswith("failed"):
            span.set_status(StatusCode.ERROR, outcome)
        inside = set_span_in_context(span, parent)
        moments = sorted(run.entered.items(), key=lambda item: item[1])
        ends = [*(begun for _, begun in moments[1:]), now]
        for (phase, begun), end in zip(moments, ends, strict=True):
            if phase is not Phase.LOADING or run.load_ms:
                tracer.start_span(phase.value, inside, start_time=at(begun)).end(at(end))
        span.end(at(now))


_MS = 1_000_000
"""Nanoseconds."""


def _about(claim: Claim) -> dict[str, str | int]:
    return {
        "gen_ai.request.model": claim.model,
        "rockchipllama.job": claim.job,
        "rockchipllama.lane": claim.lane,
    }
