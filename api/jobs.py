"""Jobs by their id: how they stand, and their cancellation."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.delivery import while_connected
from api.durations import read_duration
from api.errors import HttpProblem, Problem
from api.needs import services_of
from tasks.errors import JobNotFound
from tasks.jobs import JobState, JobView, is_job_id

router = APIRouter(prefix="/v1/jobs", tags=["Jobs"])

LONGEST_WAIT = 60.0
"""Seconds; longer waits meet the patience of proxies."""


@router.get(
    "/{job}",
    summary="Show a job",
    openapi_extra={
        "parameters": [
            {
                "name": "wait",
                "in": "query",
                "required": False,
                "schema": {"type": "string", "examples": ["30s"]},
                "description": "Answer at the first change of state, phase or position, or after this long; at most 60 s.",
            }
        ]
    },
)
async def show_job(http: Request, job: str) -> Response:
    """How a job stands; with `wait`, once that has changed."""
    wait = http.query_params.get("wait")
    seconds = read_duration(wait, "wait", LONGEST_WAIT) if wait else 0.0
    jobs = services_of(http)["jobs"]
    view = await jobs.view(checked_id(job))
    if seconds > 0 and view.ended_at is None:
        view = await while_connected(http, jobs.wait(view.id, view, seconds))
    return _json(view)


@router.post("/{job}/cancel", summary="Cancel a job")
async def cancel_job(http: Request, job: str) -> Response:
    """End a job, wherever it stands. A cancelled job stays cancelled; one that has ended otherwise is a 409."""
    view = await services_of(http)["jobs"].cancel(checked_id(job))
    if view.state in (JobState.FINISHED, JobState.FAILED):
        message = f"The job '{view.id}' has {view.state.value} already and can no longer be cancelled."
        raise HttpProblem(Problem(409, "job_ended", message, retry=False, job=view.id))
    return _json(view)


def checked_id(job: str) -> str:
    """The id, if it can be one: anything else never reaches a key. Raises `JobNotFound`."""
    if not is_job_id(job):
        raise JobNotFound(job)
    return job


def render(view: JobView) -> dict[str, Any]:
    """A job as clients see it, with names where the record has positions."""
    fields: dict[str, Any] = {"object": "job"} | {name: getattr(view, name) for name in JobView.__struct_fields__}
    for name in ("usage", "timings", "error"):
        value = fields[name]
        if value is not None:
            fields[name] = {part: getattr(value, part) for part in value.__struct_fields__}
    return fields


def _json(view: JobView) -> Response:
    return Response(
        msgspec.json.encode(render(view)),
        headers={"x-job-id": view.id, "cache-control": "no-store"},
        media_type="application/json",
    )
