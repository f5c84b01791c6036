"""The sweep: ends claims whose lease lapsed, waiting jobs past their deadline and jobs nobody reads, tops up missing calls.

Boards sweep every model that has jobs; API processes those that no living board has. It is safe done twice at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import cast

import redis

from tasks import keys
from tasks.claims import HandedBack, hand_back
from tasks.clock import Clock
from tasks.connection import UNREACHABLE, text
from tasks.events import Failed, FailureCode, encode_events
from tasks.queue import send
from tasks.readers import Readers
from tasks.scripts import FAIL_QUEUED, LEAVE
from tasks.standing import Gate, read_gate
from tasks.store import CANCELLED

log = logging.getLogger("rockchipllama.sweep")

SWEEP = 5.0
"""Seconds between two sweeps of one process."""
SLUGGISH = 1.0
"""Seconds after which a late answer of Redis counts as an outage: whoever renews a lease waited as long."""

SEARCH = 1000, 20
"""Keys that one step of the search for models looks at, and steps in one sweep: at most some 15 ms of Redis' time, and
others get their turn after each step. With 100,000 jobs on record the search comes round in about a minute."""

VANISHED = "the worker that had this vanished"
TOO_LATE = "The request waited longer than its deadline allows and was given up before it began."


class Sweeper:
    """Sweeps for one process, and knows when a lapsed lease means that its holder is gone, or silence that a reader is.

    It does not while Redis has just come back, or was started: nobody could renew or breathe, or what they said is
    forgotten. Holders get one whole lease first, readers three; so they do from a sweeper that is new and cannot know what
    was before.
    """

    def __init__(self, client: redis.Redis, lease: float) -> None:
        """`lease` is in seconds."""
        self._client = client
        self._lease = lease
        self._outage = time.monotonic()
        self._clock = Clock(client)
        self._run = ""
        self._with_jobs = _ModelsWithJobs(client)
        self._patience = 3 * lease
        self._readers = Readers(client, self._patience, 2 * SWEEP)

    def lost_redis(self) -> None:
        """Redis could not be reached just now."""
        self._outage = time.monotonic()
        self._readers.forgive()

    def sweep(self, models: Collection[str], others: Collection[str] = ()) -> None:
        """Mend what is amiss with the jobs of these models, and of whatever model has jobs but `others`, which somebody else
        sweeps. Cheap when nothing is. Raises what the client raises."""
        asked = time.monotonic()
        try:
            run = self._client.info("server")["run_id"]
            clock = self._clock.look()
        except UNREACHABLE:
            self.lost_redis()
            raise
        if run != self._run:
            # Another one, which has forgotten what was renewed or breathed. Its age would not tell, by a clock that jumps.
            self.lost_redis()
        self._run = run
        if time.monotonic() > asked + SLUGGISH:
            self.lost_redis()
        waited = time.monotonic() > self._outage + self._lease
        # The time of that answer: a lease that ends while Redis stalls from here on does not count in this round.
        now = clock if waited else None
        jobs = self._jobs(set(models) | (self._with_jobs.find() - set(others)))
        for model in jobs:
            sweep(self._client, model, now)
        self._end_unread([job for its in jobs.values() for job in its])

    def _jobs(self, models: Collection[str]) -> dict[str, list[str]]:
        """The jobs that wait or run, by their models; a model without any is left out, and nothing is amiss with it."""
        asked = self._client.pipeline(transaction=False)
        for model in models:
            asked.zrange(keys.waiting(model), 0, -1)
            asked.zrange(keys.running(model), 0, -1)
        found = asked.execute()
        its = {
            model: [*waiting, *running] for model, waiting, running in zip(models, found[::2], found[1::2], strict=True)
        }
        return {model: [raw.decode() for raw in jobs] for model, jobs in its.items() if jobs}

    def _end_unread(self, jobs: Collection[str]) -> None:
        """Cancel those jobs that nobody reads any more, when their grace is over: their answers are for nobody.

        Who leaves in order says so; of a process that died nobody else would.
        """
        asked = self._client.pipeline(transaction=False)
        for job in jobs:
            asked.hmget(keys.job(job), "model", "readers", "unread")
        records = list(zip(jobs, asked.execute(), strict=True))
        reading = {job: text(readers or b"").split() for job, (_, readers, _) in records}
        gone = self._readers.gone({_process(reader) for readers in reading.values() for reader in readers})
        for job, (model, _, unread) in records:
            left = [reader for reader in reading[job] if _process(reader) in gone]
            for reader in left or ([""] if unread else []):
                log.log(
                    logging.WARNING if reader else logging.DEBUG, "a job is not read", extra={"job": job, "by": reader}
                )
                LEAVE.run(
                    self._client,
                    [keys.job(job), keys.events(job), keys.waiting(text(model))],
                    *(job, reader, "its reader is gone", CANCELLED),
                )


def _process(reader: str) -> str:
    return reader.partition("/")[0]


class _ModelsWithJobs:
    """Finds models by the keys of their jobs: also those of which no card tells any more."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._cursor = 0
        self._found: set[str] = set()
        self._before: set[str] = set()

    def find(self) -> set[str]:
        """The models found by this round of the search and the one before it. Raises what the client raises."""
        keys_a_step, steps = SEARCH
        for _ in range(steps):
            self._cursor, found = self._client.scan(self._cursor, match=keys.QUEUES, count=keys_a_step)
            self._found |= {keys.model_of(text(key)) for key in found}
            if self._cursor == 0:
                self._before, self._found = self._found, set()
                break
        return self._before | self._found


def sweep(client: redis.Redis, model: str, now: int | None) -> None:
    """Mend what is amiss with one model's jobs. Raises what the client raises.

    Leases that ended before `now` have lapsed, in milliseconds by the service's clock; None lets all of them stand.
    """
    lapsed = client.zrangebyscore(keys.running(model), "-inf", now) if now is not None else ()
    for raw in cast("list[bytes]", lapsed):
        job = raw.decode()
        claim = cast("bytes | None", client.hget(keys.job(job), "claim"))
        became = hand_back(client, model, job, text(claim or b""), VANISHED, crashed=True, lapsed_only=True)
        if became is not HandedBack.NOT_OURS:
            log.error("the lease on a job lapsed", extra={"job": job, "model": model, "now": became.name.lower()})
    too_late = encode_events([Failed(FailureCode.DEADLINE, TOO_LATE)])
    for raw in cast("list[bytes]", client.zrange(keys.waiting(model), 0, -1)):
        job = raw.decode()
        FAIL_QUEUED.run(client, [keys.job(job), keys.events(job), keys.waiting(model)], job, too_late, 1)
    if read_gate(cast("bytes | None", client.hget(keys.GATES, model))) is Gate.PAUSED:
        return  # calls would find nothing, each round anew
    waiting = client.zcard(keys.waiting(model))
    calls = client.llen(keys.calls(model))
    for _ in range(waiting - calls):
        send(client, model)
