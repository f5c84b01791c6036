"""Jobs as an API process looks at them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tasks.feed import Subscription
from tasks.job_book import JobBook
from tasks.jobs import JobState, JobView
from tests.api.scripted import JOB
from tests.api.scripted_services import view

pytestmark = pytest.mark.anyio


class Store:
    """One job, that stands otherwise at each look."""

    def __init__(self, *views: JobView) -> None:
        self.views = list(views)

    async def cancel(self, job: str, reason: str) -> None:
        """It is asked to end."""

    async def view(self, job: str) -> JobView:
        """As it stands now."""
        return self.views.pop(0)


class Feed:
    """On which nothing is said."""

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        """No messages."""
        yield Subscription()


async def test_a_cancelled_job_is_told_once_it_has_ended() -> None:
    """And not when it has come to another phase, or into its queue again, where it is to hear of it yet."""
    loading, reading = (view(state=JobState.RUNNING, phase=phase) for phase in ("loading", "prefill"))
    ended = view(state=JobState.CANCELLED, ended_at=1.0)
    parts: Any = Store(loading, reading, view(state=JobState.QUEUED), ended), Feed()
    assert (await JobBook(*parts).cancel(JOB)).state is JobState.CANCELLED
