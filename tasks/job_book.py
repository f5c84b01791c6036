"""Jobs as people ask for them by id: looked at, waited for, cancelled."""

from __future__ import annotations

import asyncio

from tasks import keys
from tasks.feed import LiveFeed
from tasks.job_records import JobAnswer, KeptJob, Page
from tasks.jobs import ENDED, JobState, JobView, Once
from tasks.store import JobStore

ENDING = 2.0
"""Seconds for which the end of a job that was cancelled is waited for."""


class JobBook:
    """What is asked of the store for a client that knows an id. Raises `QueueUnavailable` as that does."""

    def __init__(self, store: JobStore, feed: LiveFeed) -> None:
        self._store = store
        self._feed = feed

    async def view(self, job: str) -> JobView:
        """The job as it stands. Raises `JobNotFound`."""
        return await self._store.view(job)

    async def events(self, job: str, after: int) -> Page:
        """Its events behind number `after`, as many as go on a page. Raises `JobNotFound` and `Unreadable`."""
        return await self._store.events(job, after)

    async def kept(self, job: str) -> KeptJob:
        """What its front keeps of a job, and what was said. Raises `JobNotFound`, also where none keeps any, and `Unreadable`."""
        return await self._store.kept(job)

    async def answer(self, job: str) -> JobAnswer:
        """All that a job has said so far. Raises `JobNotFound` and `Unreadable`."""
        return await self._store.answer(job)

    async def id_of(self, owner: str, key: str) -> str:
        """The id of the job that this owner makes under a key of its own."""
        return await self._store.id_of(owner, key)

    async def has(self, once: Once) -> bool:
        """Whether that was accepted before; it is on the disk then. Raises `KeyReused` and `NotOnDisk`."""
        return await self._store.has(once)

    async def forget(self, job: str) -> None:
        """End the job, and keep nothing of it. Raises `JobNotFound`."""
        await self._store.forget(job)

    async def cancel(self, job: str) -> JobView:
        """Ask for the job's end, and wait a moment for it. An ended job stays as it is. Raises `JobNotFound`."""
        await self._store.cancel(job, "cancelled by request")
        view = await self._store.view(job)
        now = asyncio.get_running_loop().time
        end = now() + ENDING
        # It may go on to another phase, or back into its queue, before it hears of this.
        while view.state not in ENDED and (left := end - now()) > 0:
            view = await self.wait(job, view, left)
        return view

    async def wait(self, job: str, known: JobView, seconds: float) -> JobView:
        """The job once its state, phase or position differs from `known`, else as it is after `seconds`."""
        async with self._feed.subscribe(keys.live(job)) as subscription, asyncio.timeout(seconds + 5):
            loop = asyncio.get_running_loop()
            end = loop.time() + seconds
            while True:
                view = await self._store.view(job)
                left = end - loop.time()
                if left <= 0 or view.state in ENDED or _standing(view) != _standing(known):
                    return view
                # A place in the queue changes without a word on this job's channel.
                await subscription.wait(min(left, 1.0 if view.state is JobState.QUEUED else 5.0))
                for _ in subscription.take():
                    pass


def _standing(view: JobView) -> tuple[object, ...]:
    return (view.state, view.phase, view.position, view.attempts)
