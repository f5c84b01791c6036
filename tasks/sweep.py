"""The sweep: ends claims whose lease lapsed and waiting jobs past their deadline, and tops up missing calls.

Boards sweep every model that is known; API processes those that no living board has. It is safe done twice at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import cast

import redis

from tasks import keys
from tasks.claims import HandedBack, hand_back
from tasks.connection import UNREACHABLE, text
from tasks.events import Failed, FailureCode, encode_events
from tasks.queue import send
from tasks.scripts import FAIL_QUEUED

log = logging.getLogger("rockchipllama.sweep")

SWEEP = 5.0
"""Seconds between two sweeps of one process."""
SLUGGISH = 1.0
"""Seconds after which a late answer of Redis counts as an outage: whoever renews a lease waited as long."""

VANISHED = "the worker that had this vanished"
TOO_LATE = "The request waited longer than its deadline allows and was given up before it began."


class Sweeper:
    """Sweeps for one process, and knows when a lapsed lease means that its holder is gone.

    It does not while Redis has just come back, or was started: holders could not renew, or their renewals are
    forgotten. They get one whole lease first; so they do from a sweeper that is new and cannot know what was before.
    """

    def __init__(self, client: redis.Redis, lease: float) -> None:
        """`lease` is in seconds."""
        self._client = client
        self._lease = lease
        self._outage = time.monotonic()

    def lost_redis(self) -> None:
        """Redis could not be reached just now."""
        self._outage = time.monotonic()

    def sweep(self, models: Iterable[str]) -> None:
        """Mend what is amiss with the jobs of these models. Cheap when nothing is. Raises what the client raises."""
        asked = time.monotonic()
        try:
            server = self._client.info("server")
        except UNREACHABLE:
            self.lost_redis()
            raise
        if time.monotonic() > asked + SLUGGISH:
            self.lost_redis()
        waited = time.monotonic() > self._outage + self._lease and server["uptime_in_seconds"] > self._lease
        # The time of that answer: a lease that ends while Redis stalls from here on does not count in this round.
        now = server["server_time_usec"] // 1000 if waited else None
        for model in models:
            sweep(self._client, model, now)


def sweep(client: redis.Redis, model: str, now: int | None) -> None:
    """Mend what is amiss with one model's jobs. Raises what the client raises.

    Leases that ended before `now` have lapsed, in milliseconds by Redis' clock; None lets all of them stand.
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
    waiting = client.zcard(keys.waiting(model))
    calls = client.llen(keys.calls(model))
    for _ in range(waiting - calls):
        send(client, model)
