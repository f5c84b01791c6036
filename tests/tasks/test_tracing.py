"""Traces while they are off, and the words by which a span goes with a job. `tests/e2e/test_tracing.py` looks at them."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio
from opentelemetry import context, trace
from pydantic import ValidationError

from tasks import tracing
from tasks.claims import Claim, claim_next
from tasks.jobs import Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.settings import TaskSettings
from tasks.store import JobStore

SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_what_cannot_be_sent_is_refused_when_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that mends it, rather than traces that never come."""
    with pytest.raises(ValidationError, match="it must begin with http"):
        TaskSettings(otlp_endpoint="collector:4318")
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"pip install -r requirements-otel\.lock"):
        TaskSettings(otlp_endpoint="http://collector:4318")


def test_a_span_is_carried_in_words() -> None:
    """Those of the header `traceparent`; outside of any there are none."""
    assert tracing.current() is None
    token = context.attach(tracing.within(SPAN))
    assert tracing.current() == SPAN
    context.detach(token)
    assert not trace.get_current_span(tracing.within("nonsense")).get_span_context().is_valid


@pytest.mark.anyio
async def test_it_stays_with_the_job(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """So that whichever worker has it says what it belongs to, and when it began to wait."""
    store = JobStore(aclient, queue_limit=10, job_ttl=60, deadline=600)
    for span in (SPAN, None):
        job = new_job_id()
        request = ChatRequest((Message("user", "hello"),))
        await store.accept(job, "echo", request, lane=Lane.INTERACTIVE, owner="", trace=span)
        claim = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
        assert isinstance(claim, Claim) and claim.trace == (span or "")
        assert 0 < claim.since <= claim.started
