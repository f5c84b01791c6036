"""The sweep: what is amiss is mended, and what is not is left alone."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, Renewal, claim_next, hand_back, renew
from tasks.connection import connect
from tasks.events import FailureCode, TextDelta
from tasks.jobs import JobState, Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter
from tasks.sweep import VANISHED, Sweeper, _ModelsWithJobs, sweep
from tests.stack import eventually
from tests.tasks.jobs import clock, past_deadline

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)


async def accept(store: JobStore, deadline: float | None = None, reader: str | None = None, grace: float = 0.0) -> str:
    job = new_job_id()
    await store.accept(
        *(job, "echo", HELLO), lane=Lane.INTERACTIVE, owner="", deadline=deadline, reader=reader, grace=grace
    )
    return job


def claim(client: redis.Redis, lease: float = 60) -> Claim:
    held = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=lease)
    assert held is not None
    return held


def lapse(client: redis.Redis, held: Claim) -> None:
    """Let the lease end now, and wait until the clock is past it."""
    renew(client, held, 0.0, "prefill", 0)
    end = client.zscore(keys.running("echo"), held.job)
    eventually(lambda: clock(client) > end, what="the end of a lease")  # type: ignore[operator]


def everything(client: redis.Redis) -> dict[bytes, object]:
    return {key: client.dump(key) for key in client.keys("*")}


async def test_a_job_whose_worker_vanished_waits_again(store: JobStore, client: redis.Redis) -> None:
    """In its old place, with a call that brings a worker; its claim counts as a failure."""
    job, later = await accept(store), await accept(store)
    held = claim(client)
    lapse(client, held)
    client.delete(keys.calls("echo"))
    sweep(client, "echo", clock(client))
    view = await store.view(job)
    assert (view.state, view.position, (await store.view(later)).position) == (JobState.QUEUED, 1, 2)
    assert client.hget(keys.job(job), "failures") == b"1"
    assert client.llen(keys.calls("echo")) == 2
    assert client.zcard(keys.running("echo")) == 0
    assert claim(client).token != held.token
    assert (await store.view(job)).attempts == 2


@pytest.mark.parametrize("crashed", [True, False])
async def test_the_call_of_a_dead_worker_goes_with_its_claim(
    store: JobStore, client: redis.Redis, crashed: bool
) -> None:
    """Celery would send it again an hour later. A worker that lives acknowledges its own, and other calls are others'."""
    job = await accept(store)
    held = claim(client)
    for name in ("c", "another"):
        client.hset("rl:unacked", name, "a call")
        client.zadd("rl:unacked_index", {name: 1})
    hand_back(client, "echo", job, held.token, "it is gone", crashed=crashed)
    left = [b"another"] if crashed else [b"another", b"c"]
    assert sorted(client.hkeys("rl:unacked")) == sorted(client.zrange("rl:unacked_index", 0, -1)) == left


async def test_a_job_whose_answer_was_begun_waits_again(store: JobStore, client: redis.Redis) -> None:
    """Somebody else goes on with it; how often that happened is kept."""
    await accept(store)
    held = claim(client)
    with EventWriter(client, held.job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.write((TextDelta("half an"),))
    lapse(client, held)
    sweep(client, "echo", clock(client))
    view = await store.view(held.job)
    assert (view.state, view.interruptions) == (JobState.QUEUED, (VANISHED,))


async def test_a_cancelled_job_of_a_vanished_worker_ends_cancelled(store: JobStore, client: redis.Redis) -> None:
    """Nobody wants it any more, so it does not wait again."""
    job = await accept(store)
    held = claim(client)
    await store.cancel(job, "client left")
    lapse(client, held)
    sweep(client, "echo", clock(client))
    assert (await store.view(job)).state is JobState.CANCELLED


async def test_a_job_past_its_deadline_is_given_up_while_it_waits(store: JobStore, client: redis.Redis) -> None:
    """Wherever it stands in the queue, with a sentence; the others stay."""
    first = await accept(store)
    late = await accept(store, deadline=0.001)
    last = await accept(store)
    eventually(lambda: past_deadline(client, late), what="the deadline")
    sweep(client, "echo", clock(client))
    view = await store.view(late)
    assert view.state is JobState.FAILED and view.error is not None
    assert view.error.code is FailureCode.DEADLINE
    assert client.pttl(keys.job(late)) > 0
    assert [(await store.view(job)).position for job in (first, last)] == [1, 2]


async def test_missing_calls_are_topped_up(store: JobStore, client: redis.Redis) -> None:
    """To at least as many as jobs wait; a surplus stays, since it costs nothing."""
    for _ in range(5):
        await accept(store)
    client.ltrim(keys.calls("echo"), 0, 1)
    sweep(client, "echo", clock(client))
    assert client.llen(keys.calls("echo")) == 5
    claim(client)
    sweep(client, "echo", clock(client))
    assert client.llen(keys.calls("echo")) == 5


async def test_what_has_lost_its_record_is_forgotten(store: JobStore, client: redis.Redis) -> None:
    """Somebody deleted keys by hand: no ghost stays in the queue or among what runs."""
    running, waiting = await accept(store), await accept(store)
    held = claim(client)
    lapse(client, held)
    client.delete(keys.job(running), keys.job(waiting))
    sweep(client, "echo", clock(client))
    assert client.exists(keys.running("echo"), keys.waiting("echo")) == 0


def file_size(client: redis.Redis) -> int:
    """Bytes of the append-only file, with all that was done so far: a disk that is busy gets it later."""
    eventually(lambda: client.info("persistence")["aof_buffer_length"] == 0, what="a written file")
    return int(client.info("persistence")["aof_current_size"])


async def test_nothing_is_done_when_nothing_is_amiss(store: JobStore, client: redis.Redis) -> None:
    """Not one byte of any key changes, nor of the append-only file: it runs every few seconds for years."""
    for _ in range(3):
        await accept(store)
    claim(client)
    before, size = everything(client), file_size(client)
    for _ in range(5):
        sweep(client, "echo", clock(client))
        sweep(client, "unheard-of", clock(client))
    assert everything(client) == before
    assert file_size(client) == size


async def test_two_boards_may_sweep_at_once(store: JobStore, client: redis.Redis) -> None:
    """A lapsed claim is ended once."""
    job = await accept(store)
    lapse(client, claim(client))
    await asyncio.gather(*(asyncio.to_thread(sweep, client, "echo", clock(client)) for _ in range(8)))
    assert client.hget(keys.job(job), "failures") == b"1"
    assert (await store.view(job)).state is JobState.QUEUED


async def test_leases_stand_while_redis_has_just_come_back(
    store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds a job could not renew, or its renewals are forgotten: it gets a lease's time first."""
    pace = Pace()
    monkeypatch.setattr("tasks.sweep.time", pace)
    job = await accept(store)
    lapse(client, claim(client))

    async def state_after(sweeper: Sweeper) -> JobState:
        sweeper.sweep(["echo"])
        return (await store.view(job)).state

    sweeper = Sweeper(client, lease=1.5)
    assert await state_after(sweeper) is JobState.RUNNING  # it cannot know what was before it
    pace.now += 2
    sweeper.lost_redis()
    assert await state_after(sweeper) is JobState.RUNNING
    pace.now += 2
    with monkeypatch.context() as restarted:
        restarted.setattr(client, "info", lambda _: {"run_id": "another"})
        assert await state_after(sweeper) is JobState.RUNNING
        pace.now += 1
        assert await state_after(sweeper) is JobState.RUNNING
    pace.now += 2
    pace.stall = 1.2
    assert await state_after(sweeper) is JobState.RUNNING  # Redis stalled, so nobody could renew meanwhile
    assert await state_after(sweeper) is JobState.RUNNING
    pace.now += 2
    assert await state_after(sweeper) is JobState.QUEUED


class Pace:
    """A clock in the place of `time`: it moves only when told, and by `stall` between the next two looks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stall = 0.0

    def monotonic(self) -> float:
        now, self.now, self.stall = self.now, self.now + self.stall, 0.0
        return now


async def test_an_unreachable_redis_is_an_outage_the_sweeper_sees_itself(store: JobStore, client: redis.Redis) -> None:
    """Whoever runs it need not tell."""
    away = Sweeper(connect("unix:///nowhere.sock"), lease=1)
    away._outage = 0.0
    with pytest.raises(redis.ConnectionError):
        away.sweep(["echo"])
    assert away._outage > 0


async def test_a_lease_that_ends_during_the_sweep_is_left_to_the_next(store: JobStore, client: redis.Redis) -> None:
    """Redis may stall in the middle of one, and nobody could renew meanwhile."""
    job = await accept(store)
    begun = clock(client) - 1
    lapse(client, claim(client))
    sweep(client, "echo", begun)
    assert (await store.view(job)).state is JobState.RUNNING


async def test_without_leases_all_else_is_mended(store: JobStore, client: redis.Redis) -> None:
    """Calls and deadlines do not depend on anybody's renewals."""
    running, late, waiting = await accept(store), await accept(store, deadline=0.001), await accept(store)
    lapse(client, claim(client))
    eventually(lambda: past_deadline(client, late), what="the deadline")
    client.delete(keys.calls("echo"))
    sweep(client, "echo", None)
    states = [(await store.view(job)).state for job in (running, late, waiting)]
    assert states == [JobState.RUNNING, JobState.FAILED, JobState.QUEUED]
    assert client.llen(keys.calls("echo")) == 1


async def test_missing_calls_are_made_up_for_in_full_memory(store: JobStore, client: redis.Redis) -> None:
    """A job that waits without one would never be served, and its end is what makes room."""
    await accept(store)
    client.delete(keys.calls("echo"))
    before = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", 1)
    try:
        sweep(client, "echo", None)
    finally:
        client.config_set("maxmemory", before)
    assert client.llen(keys.calls("echo")) == 1


async def test_models_without_jobs_cost_one_question_together(store: JobStore, client: redis.Redis) -> None:
    """A board has dozens of models, and sweeps them all day long."""

    def asked(models: list[str]) -> tuple[int, int]:
        client.config_resetstat()
        Sweeper(client, lease=10).sweep(models)
        counts = client.info("commandstats")
        return counts["cmdstat_zrange"]["calls"], counts["cmdstat_llen"]["calls"]

    await accept(store)
    jobs, calls = asked(["echo"])
    assert asked(["echo", *(f"model-{number}" for number in range(50))]) == (jobs + 2 * 50, calls)


async def test_models_are_found_by_their_jobs(store: JobStore, client: redis.Redis) -> None:
    """Nobody announces the model any more, and its files are gone: its jobs' deadline ends them all the same."""
    late = await accept(store, deadline=0.001)
    eventually(lambda: past_deadline(client, late), what="the deadline")
    sweeper = Sweeper(client, lease=10)
    sweeper.sweep([], others=["echo"])
    assert (await store.view(late)).state is JobState.QUEUED
    sweeper.sweep([])
    assert (await store.view(late)).state is JobState.FAILED


async def test_the_search_for_models_is_cheap_however_many_jobs_there_were(
    store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sweep takes a few steps from where the last one stopped; what it found it knows until it has come round again."""
    monkeypatch.setattr("tasks.sweep.SEARCH", (10, 2))
    for index in range(300):
        client.hset(keys.job(f"{index:022d}"), "state", "finished")
    await accept(store)
    search = _ModelsWithJobs(client)
    client.config_resetstat()
    found = [search.find() for _ in range(80)]
    assert client.info("commandstats")["cmdstat_scan"]["calls"] <= 160
    first = found.index({"echo"})
    assert first < 40 and found[first:] == [{"echo"}] * (80 - first)
    client.delete(keys.waiting("echo"))
    assert set() in [search.find() for _ in range(80)]


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """The clock of the sweeper and of its ear."""
    pace = Pace()
    monkeypatch.setattr("tasks.sweep.time", pace)
    monkeypatch.setattr("tasks.readers.time", pace)
    return pace


class Listener:
    """A sweeper that sweeps every second of its clock; a reader counts as gone after three halves of one."""

    def __init__(self, client: redis.Redis, pace: Pace) -> None:
        self.client = client
        self.pace = pace
        self.sweeper = Sweeper(client, lease=0.5)

    def sweep(self, times: int = 1, breathing: str | None = None) -> None:
        for _ in range(times):
            if breathing is not None:
                self.client.hset(keys.PRESENCE, breathing, f"{self.pace.now}:")
            self.sweeper.sweep(["echo"])
            self.pace.now += 0.5


async def test_jobs_of_a_reader_that_is_gone_are_cancelled(store: JobStore, client: redis.Redis, pace: Pace) -> None:
    """Running or waiting; those of others go on, and so do those that nobody waits for."""
    orphans = [await accept(store, reader="api:gone/7") for _ in range(2)]
    others = [await accept(store, reader=reader) for reader in ("api:there/7", None)]
    held = claim(client)
    assert held.job == orphans[0]
    listener = Listener(client, pace)
    listener.sweep(3, breathing="api:gone")
    listener.sweep(2, breathing="api:there")
    client.hdel(keys.PRESENCE, "api:gone")  # as everybody who breathes does for whoever has long stopped
    listener.sweep(1, breathing="api:there")
    assert (await store.view(orphans[1])).state is JobState.QUEUED
    listener.sweep(1, breathing="api:there")
    assert (await store.view(orphans[1])).state is JobState.CANCELLED
    assert renew(client, held, 60, "decode", 0) is Renewal.CANCELLED
    listener.sweep(8, breathing="api:there")
    assert [(await store.view(job)).state for job in others] == [JobState.QUEUED] * 2
    listener.sweep(8)
    assert [(await store.view(job)).state for job in others] == [JobState.CANCELLED, JobState.QUEUED]


async def test_a_job_with_a_grace_outlives_its_reader_for_so_long(
    store: JobStore, client: redis.Redis, pace: Pace
) -> None:
    """Whoever comes meanwhile keeps it; else it is cancelled when the grace is over, though its API process is long gone."""
    kept, lost = [await accept(store, reader="api:gone/1", grace=600) for _ in range(2)]
    listener = Listener(client, pace)
    listener.sweep(6)
    assert {client.hexists(keys.job(job), "readers") for job in (kept, lost)} == {False}
    await store.attend(kept, "api:there/1")
    listener.sweep(1, breathing="api:there")
    assert {(await store.view(job)).state for job in (kept, lost)} == {JobState.QUEUED}
    for job in (kept, lost):
        if client.hexists(keys.job(job), "unread"):
            client.hset(keys.job(job), "unread", clock(client))  # the grace is over
    listener.sweep(2, breathing="api:there")
    assert [(await store.view(job)).state for job in (kept, lost)] == [JobState.QUEUED, JobState.CANCELLED]


@pytest.mark.parametrize("excuse", ["a new sweeper", "an outage", "a stall", "a restart", "a sweeper that was stopped"])
async def test_nobody_is_gone_who_could_not_be_heard(
    store: JobStore, client: redis.Redis, pace: Pace, monkeypatch: pytest.MonkeyPatch, excuse: str
) -> None:
    """Whoever has not breathed gets the whole time again."""
    job = await accept(store, reader="api:silent")
    listener = Listener(client, pace)
    listener.sweep(4)
    match excuse:
        case "a new sweeper":
            listener = Listener(client, pace)
        case "an outage":
            listener.sweeper.lost_redis()
        case "a stall":
            pace.stall = 1.2
        case "a restart":
            monkeypatch.setattr(client, "info", lambda _: {"run_id": "another"})
        case _:
            pace.now += 60
    listener.sweep(3)
    assert (await store.view(job)).state is JobState.QUEUED
    listener.sweep(3)
    assert (await store.view(job)).state is JobState.CANCELLED
