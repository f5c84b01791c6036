"""A worker's hold on one job: taken, renewed, handed back."""

from __future__ import annotations

import array
import math
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import redis

from tasks import keys
from tasks.connection import text
from tasks.events import Failed, FailureCode, Started, encode_events
from tasks.job_records import fields
from tasks.policy import Ageing
from tasks.queue import call
from tasks.scripts import CLAIM, HAND_BACK, RENEW
from tasks.store import CANCELLED

MOST_FAILURES = 3
"""Claims that may end by a crash, a stall or a lapsed lease before the job fails for good."""

_DEADLINE = encode_events(
    [
        Failed(
            FailureCode.DEADLINE, "The request waited longer than its deadline allows and was given up before it began."
        )
    ]
)


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
    owner: str = ""
    """Whose it is."""
    waited: int = 0
    """How long the job waited, in all its waits."""
    again: int = 0
    """Tokens that earlier claims prefilled though they had been before."""
    decoded: int = 0
    """Milliseconds that the engines of earlier claims took for what they said, where they could tell."""
    read: int = 0
    """Tokens of the prompt that claims before this one had prefilled, the one that came farthest."""
    sent: bool = False
    """Earlier claims have sent a part of the answer."""
    prompts: tuple[tuple[int, ...], ...] = ()
    """The prompts as they saw them, as token ids of `language`."""
    language: str = ""
    prefix: str = ""
    """What the prompt begins with, as a digest; '' where that is not of interest."""
    trace: str = ""
    """The span of the request that it was accepted for, as `traceparent` names it; '' where nobody traces it."""
    since: int = 0
    """When it began to wait."""
    started: int = 0
    """When this claim was made."""
    kin: str = ""
    """Which jobs it may share a run with, as a digest; '' is none."""


@dataclass(frozen=True, slots=True)
class Later:
    """Only jobs wait that are paused, left to another board, or items of batches while this one rests: it may take none of them
    for so many seconds."""

    seconds: float


class Renewal(Enum):
    """What a worker hears when it renews its lease."""

    RENEWED = 0
    CANCELLED = 1
    PAST_DEADLINE = 2
    PAUSED = 3
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
    ageing: Ageing = Ageing(),  # noqa: B008 - it is a constant
    prefix: str = "",
    beside: Claim | None = None,
    rest: float = 0.0,
    parks: bool = False,
    call_within: float = 0.0,
) -> Claim | Later | None:
    """Claim the job of `model` that is next; None when none waits. `lease` is in seconds, `prefix` that of the job that the
    worker served last. With `beside` it is one that may share a run with that claim's; None when there is none. For `rest`
    seconds the worker takes no item of a batch. `parks`: its engine keeps chats that others displace. With `call_within` it
    first waits for so many seconds for a call and takes that, and looks without one then.

    A claim whose reply was lost is asked for again under the same `attempt`, which nobody else may use, and is then the
    same claim; the client's own retries do so by themselves.
    """
    names = [keys.waiting(model), keys.running(model), keys.turns(model), keys.lanes(model), keys.calls(model)]
    values: tuple[str | bytes | int, ...] = (
        *(worker, board, child, call_id, int(lease * 1000), encode_events([Started(worker, board)]), _DEADLINE),
        attempt or new_attempt(),
        *(int(seconds * 1000) for seconds in ageing),
        *(prefix, model, call(model, "", "")),
        *((beside.kin, beside.job, beside.token) if beside is not None else ("", "", "")),
        math.ceil(rest * 1000),
        int(parks),
    )
    found = (
        CLAIM.run_behind(client, ("BRPOP", keys.calls(model), call_within), names, *values)
        if call_within
        else CLAIM.run(client, names, *values)
    )
    reply = cast("list[Any] | int | None", found)
    if reply is None:
        return None
    if isinstance(reply, int):
        return Later(reply / 1000)
    record = fields(reply[2:])
    return Claim(
        job=reply[0].decode(),
        model=model,
        token=record["claim"].decode(),
        seq=reply[1],
        request=record["request"],
        lane=record["lane"].decode(),
        owner=record["owner"].decode(),
        waited=int(record["waited"]),
        again=int(record.get("again", 0)),
        decoded=int(record.get("decoded", 0)),
        read=int(record.get("read", 0)),
        sent="sent" in record,
        prompts=prompts_of(record),
        language=record.get("language", b"").decode(),
        prefix=record.get("prefix", b"").decode(),
        trace=record.get("trace", b"").decode(),
        since=int(float(record["since"])),
        started=int(float(record["started"])),
        kin=record.get("kin", b"").decode() if "alone" not in record and "through" not in record else "",
    )


def prompt_fields(prompts: Iterable[Sequence[int]]) -> dict[str, bytes]:
    """Prompts as the record holds them; the inverse of `Claim.prompts`."""
    found = {}
    for index, tokens in enumerate(prompts):
        ids = array.array("i", tokens)
        if sys.byteorder == "big":
            ids.byteswap()
        found[f"prompt:{index}"] = ids.tobytes()
    return found


def prompts_of(record: dict[str, bytes]) -> tuple[tuple[int, ...], ...]:
    """The prompts that a record holds, as `Claim.prompts`."""
    found: list[tuple[int, ...]] = []
    while (data := record.get(f"prompt:{len(found)}")) is not None:
        ids = array.array("i", data)
        if sys.byteorder == "big":
            ids.byteswap()
        found.append(tuple(ids))
    return tuple(found)


def renew(
    client: redis.Redis, claim: Claim, lease: float, phase: str, done: int, can_be_paused: bool = True
) -> Renewal:
    """Hold the claim for another `lease` seconds, and say how far it is: `done` tokens of the prompt are prefilled."""
    return Renewal(
        cast(
            int,
            RENEW.run(
                client,
                [keys.job(claim.job), keys.running(claim.model), keys.waiting(claim.model)],
                *(claim.job, claim.token, int(lease * 1000), phase, done, int(can_be_paused)),
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
    final: bool = False,
    code: FailureCode = FailureCode.ENGINE_LOST,
    read_again: int = 0,
    paused_after: float | None = None,
    goes_to: str = "",
    decoded: float = 0.0,
) -> HandedBack:
    """End a claim whose holder cannot go on. The job waits again in its old place, and whoever claims it next goes on behind
    what is on record.

    `why` is a clause for the client. A claim that `crashed` counts: after `MOST_FAILURES` of them the job fails with `code`
    and all the reasons. With `final`, and where its model cannot go on with an answer, a job of which a part was sent fails
    now. `read_again` is how many tokens this claim prefilled though they had been before. A job that is paused waits until
    no chat has run for as long as its prefill took, which is `paused_after` milliseconds. Others leave it for a moment to the
    board that it `goes_to`, which has read it. Its engine took `decoded` milliseconds for what it said.
    """
    why = " ".join(why.split())  # a line of the history each
    before = cast("bytes | None", client.hget(keys.job(job), "history"))
    reasons = [*(text(before).splitlines() if before else ()), why]
    cut_off = (
        f"{why[:1].upper()}{why[1:]}. A part of this answer had been sent, and it cannot be gone on with. Ask again."
    )
    listed = "; ".join(f"({place}) {reason}" for place, reason in enumerate(reasons, 1))
    given_up = f"This request was given up after {len(reasons)} tries: {listed}. The boards' logs may say more."
    return HandedBack(
        cast(
            int,
            HAND_BACK.run(
                client,
                [keys.job(job), keys.events(job), keys.waiting(model), keys.running(model), keys.calls(model)],
                *(job, token, int(lapsed_only), int(crashed), int(final)),
                *(encode_events([Failed(code, cut_off)]), encode_events([Failed(code, given_up)]), MOST_FAILURES),
                *(CANCELLED, call(model, "", job), why, read_again),
                int(paused_after) if paused_after is not None else "",
                goes_to,
                round(decoded),
            ),
        )
    )
