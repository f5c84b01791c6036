"""What became of workers that died with jobs in hand: their claims end at once, instead of with their leases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple, cast

import redis

from tasks import keys
from tasks.claims import hand_back
from tasks.connection import text

log = logging.getLogger("rockchipllama.jobs")

DIED = "the process running the model died while it worked on this"


class Holder(NamedTuple):
    """Who holds a job: the worker by name, its child by number, and the call on which it was claimed."""

    job: str
    token: str
    worker: str
    child: int
    call: str


def holders(client: redis.Redis, model: str) -> Iterator[Holder]:
    """The holder of each running job of a model. Raises what the client raises."""
    for raw in cast("list[bytes]", client.zrange(keys.running(model), 0, -1)):
        job = raw.decode()
        kept = cast("list[bytes | None]", client.hmget(keys.job(job), "claim", "worker", "child", "call"))
        if None not in kept:
            claim, worker, child, call = map(text, kept)
            yield Holder(job, claim, worker, int(child), call)


def report_loss(client: redis.Redis, model: str, holder: Holder) -> None:
    """End the claim of a holder that died: the job waits again, and is gone on with by whoever claims it next."""
    became = hand_back(client, model, holder.job, holder.token, DIED, crashed=True)
    log.error("the engine's process died with a job in hand", extra={"job": holder.job, "now": became.name.lower()})
