"""A worker's hold on one job: taken, renewed, handed back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import redis

from tasks import keys
from tasks.events import Failed, FailureCode, Finished, FinishReason, Started, Timings, Usage, encode_events
from tasks.queue import call
from tasks.scripts import CLAIM, HAND_BACK, RENEW
from tasks.store import fields

MOST_FAILURES = 3
"""Claims that may end by a crash, a stall or a lapsed lease before the job fails for good."""

_DEADLINE = encode_events(
    [
        Failed(
            FailureCode.DEADLINE, "The request waited longer than its deadline allows and was given up before it began."
        )
    ]
)
_CANCELLED = encode_events([Finished(FinishReason.CANCELLED, Usage(0, 0), Timings())])


@dataclass(frozen=True, slots=True)
class Claim:
    """One job held. `token` names this claim and no other; `seq` numbers the job's last event; times are milliseconds by
    Redis' clock."""

    job: str
    model: str
    token: str
    seq: int
    request: bytes
    lane: str
    created: int
    started: int


class Renewal(Enum):
    """What a worker hears when it renews its lease."""

    RENEWED = 0
    CANCELLED = 1
    PAST_DEADLINE = 2
    LOST = -1


class HandedBack(Enum):
    """What became of a job whose claim ended early."""

    NOT_OURS = 0
    FAILED = 1
    WAITING = 2
    CANCELLED = 3


def new_attempt() -> int:
    """A number for one claim that nobody can guess and nobody else has; never 0."""
    return 1 + secrets.randbits(62)


def claim_next(
    client: redis.Redis,
    model: str,
    *,
    worker: str,
    board: str,
    child: int,
    call_id: str,
    lease: float,
    attempt: int | None = None,
) -> Claim | None:
    """Claim the job of `model` that is next; None when none waits. `lease` is in seconds.

    A claim whose reply was lost is asked for again under the same `attempt`, which nobody else may use, and is then the
    same claim; the client's own retries do so by themselves.
    """
    reply = cast(
        "list[Any] | None",
        CLAIM.run(
            client,
            [keys.waiting(model), keys.running(model)],
            *(worker, board, child, call_id, int(lease * 1000), encode_events([Started(worker, board)]), _DEADLINE),
            attempt or new_attempt(),
        ),
    )
    if reply is None:
        return None
    record = fields(reply[2:])
    return Claim(
        job=reply[0].decode(),
        model=model,
        token=record["claim"].decode(),
        seq=reply[1],
        request=record["request"],
        lane=record["lane"].decode(),
        created=int(record["created"]),
        started=int(record["started"]),
    )


def renew(client: redis.Redis, claim: Claim, lease: float, phase: str, done: int) -> Renewal:
    """Hold the claim for another `lease` seconds, and say how far it is: `done` tokens of the prompt are prefilled."""
    return Renewal(
        cast(
            int,
            RENEW.run(
                client,
                [keys.job(claim.job), keys.running(claim.model)],
                *(claim.job, claim.token, int(lease * 1000), phase, done),
            ),
        )
    )


def hand_back(
    client: redis.Redis,
    model: str,
    job: str,
    token: str,
    why: str,
    *,
    crashed: bool,
    lapsed_only: bool = False,
    code: FailureCode = FailureCode.ENGINE_LOST,
) -> HandedBack:
    """End a claim whose holder cannot go on. Untouched, the job waits again in its old place; once a client may have seen
    a part of the answer, it fails with `code`. `why` is a sentence for the client."""
    failed = encode_events([Failed(code, why)])
    return HandedBack(
        cast(
            int,
            HAND_BACK.run(
                client,
                [keys.job(job), keys.events(job), keys.waiting(model), keys.running(model), keys.calls(model)],
                *(job, token, int(lapsed_only), int(crashed), failed, MOST_FAILURES, _CANCELLED),
                call(model, "", job),
            ),
        )
    )
