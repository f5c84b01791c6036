"""The sweep: ends claims whose lease lapsed and waiting jobs past their deadline, and tops up missing calls."""

from __future__ import annotations

import logging
from typing import cast

import redis

from tasks import keys
from tasks.claims import HandedBack, hand_back
from tasks.events import Failed, FailureCode, encode_events
from tasks.queue import send
from tasks.scripts import FAIL_QUEUED

log = logging.getLogger("rockchipllama.board")

VANISHED = "The worker that answered this request vanished, and a part of the answer had been sent. Ask again."
TOO_LATE = "The request waited longer than its deadline allows and was given up before it began."


def sweep(client: redis.Redis, model: str, *, leases: bool) -> None:
    """Mend what is amiss with one model's jobs. Cheap when nothing is. Raises what the client raises.

    Without `leases` no lease counts as lapsed: after Redis was away, holders get one whole lease to renew theirs.
    """
    for raw in _lapsed(client, model) if leases else ():
        job = raw.decode()
        fence = cast("bytes | None", client.hget(keys.job(job), "fence"))
        became = hand_back(client, model, job, int(fence or 0), VANISHED, crashed=True, lapsed_only=True)
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


def uptime(client: redis.Redis) -> float:
    """Seconds since Redis was started: leases older than that were not kept."""
    info = client.info("server")
    return float(info["uptime_in_seconds"])


def _lapsed(client: redis.Redis, model: str) -> list[bytes]:
    seconds, micros = client.time()
    now = seconds * 1000 + micros // 1000
    return cast("list[bytes]", client.zrangebyscore(keys.running(model), "-inf", now))
