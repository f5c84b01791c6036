"""The output of a batch: what became of each of its requests, as a line of the output file or of the error file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from api.errors import Problem
from api.openai.problems import render
from tasks.batch import BatchState
from tasks.events import Event, Finished, Started, Usage
from tasks.roster import ModelStatus

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the line of this number: `data` is a line of the output file, or of the error file if it is not
    `answered`."""

    line: int
    job: str
    data: bytes
    answered: bool
    usage: Usage | None = None


def answered(
    line: int, job: str, custom_id: str, answer: Any, status: ModelStatus, events: Sequence[Event], end: Finished
) -> Outcome:
    """Its answer, and by whom it was served."""
    started = next((event for event in reversed(events) if isinstance(event, Started)), None)
    times = end.timings
    data = _encode(
        {
            "id": f"batch_req_{job}",
            "custom_id": custom_id,
            "response": {"status_code": 200, "request_id": job, "body": answer},
            "error": None,
            "served": {
                "board": started.board if started else None,
                "worker": started.worker if started else None,
                "engine": f"{status.card.engine} {status.card.engine_version}",
                "queued_ms": round(times.queued_ms, 3),
                "prefill_ms": round(times.prefill_ms, 3),
                "decode_ms": round(times.decode_ms, 3),
                "together": times.together,
            },
        }
    )
    return Outcome(line, job, data + b"\n", True, end.usage)


def refused(line: int, job: str, custom_id: str, problem: Problem) -> Outcome:
    """Why it has no answer, as its endpoint would say it."""
    response = {"status_code": problem.status, "request_id": job, "body": msgspec.Raw(render(problem))}
    data = {"id": f"batch_req_{job}", "custom_id": custom_id, "response": response, "error": None}
    return Outcome(line, job, _encode(data) + b"\n", False)


def not_run(line: int, job: str, custom_id: str, ending: BatchState | None) -> Outcome:
    """Its batch had come to its end before: cancelled, or else expired."""
    if ending is BatchState.CANCELLED:
        error = {"code": "batch_cancelled", "message": "This request was not run: its batch was cancelled."}
    else:
        error = {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
    data = {"id": f"batch_req_{job}", "custom_id": custom_id, "response": None, "error": error}
    return Outcome(line, job, _encode(data) + b"\n", False)
