"""Jobs by their id: how they stand, and their cancellation."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth import may, require
from api.delivery import while_connected
from api.durations import read_duration
from api.errors import HttpProblem, Problem, invalid
from api.needs import services_of
from tasks.account import account
from tasks.api_keys import Scope
from tasks.errors import JobNotFound
from tasks.jobs import ENDED, JobState, JobView, is_job_id
from tasks.roster import ModelStatus
from tasks.waits_for import UNTOLD, story, waits_for

SHOWN = tuple(name for name in JobView.__struct_fields__ if name not in ("behind", "held", "home"))
"""What clients see of a job: nothing of other jobs."""

router = APIRouter(prefix="/v1/jobs", tags=["Jobs"])

MOST_JOBS = 200
"""In one list."""
LONGEST_WAIT = 60.0
"""Seconds; longer waits meet the patience of proxies."""


@router.get(
    "",
    summary="List jobs",
    openapi_extra={
        "parameters": [
            {
                "name": "state",
                "in": "query",
                "required": False,
                "schema": {"type": "string", "enum": ["active", "all", *JobState], "default": "all"},
                "description": "`active` are those that run or wait.",
            },
            {
                "name": "limit",
                "in": "query",
                "required": False,
                "schema": {"type": "integer", "minimum": 1, "maximum": MOST_JOBS, "default": 50},
            },
        ]
    },
)
async def list_jobs(http: Request) -> Response:
    """The jobs of all models that run, those that wait, and those that ended lately, the newest first. Of batches only items
    that failed are among the last. Needs the scope `admin`, since whoever knows a job's id may read it."""
    require(http, Scope.ADMIN)
    asked = dict(http.query_params)
    state, words = asked.pop("state", "all"), asked.pop("limit", "50")
    for name in asked:
        raise invalid(f"Unknown parameter '{name[:40]}': there are state and limit.", name[:40])
    if state not in ("active", "all", *JobState):
        raise invalid(f"Invalid 'state': it should be active, all, {', '.join(JobState)}.", "state")
    if not words.isascii() or not words.isdecimal() or not 1 <= int(words[:9]) <= MOST_JOBS:
        raise invalid(f"Invalid 'limit': it should be a whole number from 1 to {MOST_JOBS}.", "limit")
    states = {"active": frozenset(JobState) - ENDED, "all": frozenset(JobState)}.get(state) or {JobState(state)}
    services = services_of(http)
    models = [status.card.id for status in services["roster"].models()]
    views = await services["queues"].list_jobs(models, states, int(words))
    shown = {"object": "list", "data": [_standing(http, view) for view in views]}
    return Response(msgspec.json.encode(shown), headers={"cache-control": "no-store"}, media_type="application/json")


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
    return _json(http, view)


@router.get("/{job}/why", summary="Show where a job's time went")
async def explain_job(http: Request, job: str) -> Response:
    """The parts of a job's time in their order: waits, interruptions, loading, prefill, decode, the rest. Those of a job that has
    ended add up to all of it."""
    view = await services_of(http)["jobs"].view(checked_id(job))
    parts, status = account(view, ids=may(http, Scope.ADMIN)), _status(http, view)
    shown = {
        "object": "job.why",
        "id": view.id,
        "state": view.state,
        "waits_for": waits_for(status) if status is not None else None,
        "why": (status.no_room or story(status) or None) if status is not None else None,
        "wall_ms": round((view.ended_at - view.created_at) * 1000, 3) if view.ended_at is not None else None,
        "parts": parts,
    }
    return Response(msgspec.json.encode(shown), headers={"cache-control": "no-store"}, media_type="application/json")


@router.post("/{job}/cancel", summary="Cancel a job")
async def cancel_job(http: Request, job: str) -> Response:
    """End a job, wherever it stands. A cancelled job stays cancelled; one that has ended otherwise is a 409."""
    view = await services_of(http)["jobs"].cancel(checked_id(job))
    if view.state in (JobState.FINISHED, JobState.FAILED):
        message = f"The job '{view.id}' has {view.state.value} already and can no longer be cancelled."
        raise HttpProblem(Problem(409, "job_ended", message, retry=False, job=view.id))
    return _json(http, view)


def checked_id(job: str) -> str:
    """The id, if it can be one: anything else never reaches a key. Raises `JobNotFound`."""
    if not is_job_id(job):
        raise JobNotFound(job)
    return job


def render(view: JobView) -> dict[str, Any]:
    """A job as clients see it, with names where the record has positions."""
    fields: dict[str, Any] = {"object": "job"} | {name: getattr(view, name) for name in SHOWN}
    for name in ("usage", "timings", "error"):
        value = fields[name]
        if value is not None:
            fields[name] = {part: getattr(value, part) for part in value.__struct_fields__}
    return fields


def _standing(http: Request, view: JobView) -> dict[str, Any]:
    """The job, and what it waits for."""
    status = _status(http, view)
    shown = render(view) | {"waits_for": waits_for(status) if status is not None else None}
    if shown["waits_for"] in UNTOLD:
        shown["estimated_wait"] = None  # nobody can tell
    return shown


def _status(http: Request, view: JobView) -> ModelStatus | None:
    """The model of a job that waits."""
    models = services_of(http)["roster"].models() if view.state is JobState.QUEUED else []
    return next((status for status in models if status.card.id == view.model.partition(":")[0]), None)


def _json(http: Request, view: JobView) -> Response:
    return Response(
        msgspec.json.encode(_standing(http, view)),
        headers={"x-job-id": view.id, "cache-control": "no-store"},
        media_type="application/json",
    )
