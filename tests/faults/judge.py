"""What clients got and what the records hold, held against what was promised for what happened meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from tests.faults.hurts import Hurts
from tests.faults.load import Asked
from tests.faults.service import LEASE, Service
from tests.stack import LIMIT

FAILURES = 3
"""Deaths of the engine's process after which its job is given up, with words to its client."""

FORGETFUL = ("power: cut", "power: zeros", "power: zeros beyond")
REDIS_AWAY = ("kill valkey", "freeze valkey", "full disk", *FORGETFUL)
NOBODY_BREATHES = (
    "kill board",
    "freeze board",
    "freeze child",
    "freeze worker",
    "kill worker",
    "network: cut",
    *REDIS_AWAY,
)

RECOVERY = 2 * LEASE + 10.0
"""Seconds after a fault in which a new request may still be told that nobody is there, or that Redis is not."""


def judged(service: Service, asked: Sequence[Asked], hurts: Hurts) -> list[str]:
    """What of these answers, and of their records, is not as promised after all that happened."""
    found = service.wrong({one.answer.job: one.answer.asked for one in asked if one.answer.job})
    for one in asked:
        answer = one.answer
        found += answer.wrong()
        if not _allowed(service, one, hurts):
            what = f"{one.kind} ended with {answer.end} after {len(answer.got)} characters, in {one.ended - one.began:.1f} s"
            met = [
                f"{hurt.name} at {hurt.began - one.began:+.1f} s"
                for hurt in hurts.done
                if hurt.met(*one.time, RECOVERY)
            ]
            found.append(f"{answer.job or 'no job'}: {what}, and met {', '.join(met) or 'nothing'}")
    lost, hurts.lost = hurts.lost, []
    return found + lost


def _allowed(service: Service, one: Asked, hurts: Hurts) -> bool:
    """Whether an answer may end as it did. One that is not whole needs a reason that met it, and words unless its connection
    broke."""
    answer = one.answer
    comes_back = one.kind == "returning" and answer.job
    match answer.end:
        case "stop":
            return True
        case "left":
            return one.kind == "leaving"
        case "broken":
            killed = service.killed.get(one.api)
            return not comes_back and killed is not None and one.began <= killed <= one.ended
        case "engine_lost":
            return hurts.met(FORGETFUL, *one.time) or _given_up(service, answer.job)
        case "job_not_found":
            # Redis lets the records of ended jobs expire by its own clock.
            return bool(comes_back) and hurts.met((*FORGETFUL, "clock forwards"), *one.time)
        case "storage_full":
            return not answer.job and hurts.met(("full disk",), *one.time)
        case "queue_unavailable":
            return not answer.job and hurts.met(REDIS_AWAY, *one.time, after=RECOVERY)
        case "model_unavailable":
            return not answer.job and hurts.met(NOBODY_BREATHES, *one.time, after=RECOVERY)
        case _:
            return False


def _given_up(service: Service, job: str) -> bool:
    reply = httpx.get(f"{service.url}/v1/jobs/{job}", timeout=LIMIT)
    return reply.status_code == 200 and len(reply.json()["interruptions"]) >= FAILURES
