"""Redis out of memory: nothing new is accepted, and whatever was goes on."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import HandedBack, Renewal, hand_back, renew
from tasks.errors import QueueUnavailable
from tasks.events import Failed, FailureCode, Finished, FinishReason, TextDelta, Timings, Usage, encode_events
from tasks.jobs import JobState, Lane, new_job_id
from tasks.presence import Presence, breathe
from tasks.scripts import FAIL_QUEUED
from tasks.store import JobStore
from tasks.stream import RecordedPiece
from tests.stack import eventually
from tests.tasks.jobs import DONE, HELLO, accept, claim, lapsed, taken_for_lost, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)


async def test_a_full_memory_refuses_new_jobs_and_recovers(store: JobStore, client: redis.Redis) -> None:
    """Out of memory, acceptance says that the queue is unavailable, and nothing is left half accepted."""
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueUnavailable):
            await accept(store)
    finally:
        client.config_set("maxmemory", "512mb")
    assert not client.keys("rl:{*")
    await accept(store)


async def test_in_full_memory_whatever_was_accepted_goes_on(store: JobStore, client: redis.Redis) -> None:
    """Claimed, written, renewed, cancelled, handed back, swept: only what ends makes room."""
    answered, cancelled, stopped, lost, left = [await accept(store) for _ in range(5)]
    late = new_job_id()
    await store.accept(late, "other", HELLO, lane=Lane.INTERACTIVE, owner="", deadline=0.001)
    gone = claim(client)  # the scripts must be sent anew, too
    assert gone is not None
    hand_back(client, "echo", answered, gone.token, "", crashed=False)
    client.script_flush()
    client.config_set("maxmemory", 1)
    try:
        held = claim(client)
        assert held is not None and held.job == answered
        with write(client, held) as writer:
            writer.note(**{"prompt:0": b"\1\0\0\0"})
            writer.write((TextDelta("a"),), RecordedPiece(0, 1, b"a"))
            assert renew(client, held, 60, "decode", 0) is Renewal.RENEWED
            writer.end(DONE)
        running = claim(client)
        assert running is not None and running.job == cancelled
        assert await store.cancel(cancelled, "test") is JobState.RUNNING
        with write(client, running) as writer:
            writer.end(Finished(FinishReason.CANCELLED, Usage(0, 0), Timings()))
        running = claim(client)
        assert running is not None and running.job == stopped
        assert hand_back(client, "echo", stopped, running.token, "", crashed=False) is HandedBack.WAITING
        assert await store.cancel(stopped, "test") is JobState.QUEUED
        running = claim(client, lease=0)
        assert running is not None and running.job == lost
        eventually(lambda: lapsed(client, running), what="the end of the lease")
        assert taken_for_lost(client, running) is HandedBack.WAITING
        where = [keys.job(late), keys.events(late), keys.waiting("other")]
        assert FAIL_QUEUED.run(client, where, late, encode_events([Failed(FailureCode.DEADLINE, "")]), 1) == 1
        breathe(client, Presence(name="board:b", board="b"))
        with pytest.raises(QueueUnavailable, match="no memory left"):
            await accept(store)
        states = [(await store.view(job)).state for job in (answered, cancelled, stopped, lost, left, late)]
    finally:
        client.config_set("maxmemory", "512mb")
    assert states == [
        *(JobState.FINISHED, JobState.CANCELLED, JobState.CANCELLED),
        *(JobState.QUEUED, JobState.QUEUED, JobState.FAILED),
    ]
    assert client.hexists(keys.PRESENCE, "board:b")
