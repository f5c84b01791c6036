"""What Celery's parent does when its child died with a job in hand: end the claim at once instead of waiting for the lease."""

from __future__ import annotations

import logging
from typing import cast

import redis

from tasks import keys
from tasks.claims import hand_back
from tasks.connection import text

log = logging.getLogger("rockchipllama.worker")

DIED = "the process running the model died while it worked on this"


def report_loss(client: redis.Redis, model: str, call: str) -> None:
    """End the claim made on this call: the job waits again, and is gone on with by whoever claims it next."""
    for raw in cast("list[bytes]", client.zrange(keys.running(model), 0, -1)):
        job = raw.decode()
        made_on, claim = cast("list[bytes | None]", client.hmget(keys.job(job), "call", "claim"))
        if made_on is None or claim is None or text(made_on) != call:
            continue
        became = hand_back(client, model, job, text(claim), DIED, crashed=True)
        log.error("the engine's process died with a job in hand", extra={"job": job, "now": became.name.lower()})
