"""A job as it is shown: from the fields of its record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tasks.clock import Calendar
from tasks.events import Failed, Finished, Timings, decode_events
from tasks.jobs import Before, EndedClaim, JobState, JobView, Lane, Phase
from tasks.standing import read_standing


def read_view(
    job: str, place: int, stands: list[Any] | None, seq: int, calendar: Calendar, record: dict[str, bytes]
) -> JobView:
    """The job whose record this is: `place` jobs wait before it and its queue `stands` so, while it waits. It has had `seq`
    events; `calendar` has when the moments on record were."""

    def seconds(name: str) -> float | None:
        return calendar.unix(int(record[name])) if name in record else None

    def word(name: str) -> str | None:
        return record[name].decode() if name in record else None

    state = JobState(record["state"].decode())
    last = decode_events(record["end"])[-1] if "end" in record else None
    running = state is JobState.RUNNING
    return JobView(
        id=job,
        model=name_of(record),
        kind=record["kind"].decode(),
        lane=Lane(record["lane"].decode()),
        state=state,
        phase=Phase(record["phase"].decode()) if running and "phase" in record else None,
        position=place + 1 if stands else None,
        estimated_wait=read_standing(stands).wait(place) if stands else None,
        attempts=int(record.get("fence", b"0")),
        pauses=int(record.get("pauses", b"0")),
        interruptions=tuple(record.get("history", b"").decode().splitlines()),
        created_at=calendar.unix(int(record["created"])),
        started_at=seconds("started"),
        ended_at=seconds("ended"),
        prompt_tokens_done=int(record["done"]) if running and "done" in record else None,
        prompt_tokens_again=int(record.get("again", b"0")),
        usage=last.usage if isinstance(last, Finished) else None,
        timings=_timings(last, record) if isinstance(last, Finished) else None,
        error=last if isinstance(last, Failed) else None,
        worker=word("worker"),
        board=word("board"),
        events=seq,
        ahead=int(record["ahead"]) if "ahead" in record else None,
        behind=tuple(_before(record.get("behind", b"").decode())),
        held=word("held"),
        home=word("home"),
        waiting_since=seconds("since"),
        claims=tuple(_claims(record.get("claims", b"").decode(errors="replace"), calendar)),
    )


def _claims(lines: str, calendar: Calendar) -> Iterator[EndedClaim]:
    for line in lines.splitlines():
        spent, why, *goes_to = line.split("\t")  # the name of a board may have spaces
        _, started, ended, board = spent.split(" ", 3)
        yield EndedClaim(
            calendar.unix(int(started)), calendar.unix(int(ended)), board, why, goes_to[0] if goes_to else None
        )


def _before(words: str) -> Iterator[Before]:
    for each in words.split():
        state, lane, job = each.split(":", 2)
        yield Before(job, Lane(lane) if lane else Lane.INTERACTIVE, state == "running")


def name_of(record: dict[str, bytes]) -> str:
    """The model's, with the adapter that answers behind it."""
    return ":".join(record[name].decode() for name in ("model", "adapter") if name in record)


def _timings(last: Finished, record: dict[str, bytes]) -> Timings:
    if "started" in record or "ended" not in record:
        return last.timings
    # Cancelled before a worker had it: whoever wrote its end knew nothing of how long it had waited.
    return msgspec.structs.replace(last.timings, queued_ms=float(int(record["ended"]) - int(record["created"])))
