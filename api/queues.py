"""The queues of models: how they stand, and what administrators do with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth import ALLOWED, require
from api.errors import invalid
from api.needs import roster_of, services_of
from tasks.api_keys import Scope
from tasks.jobs import JobState, Lane
from tasks.presence import Presence
from tasks.queue_book import Held, QueueView
from tasks.residence import by_board
from tasks.roster import ModelStatus
from tasks.standing import Gate

router = APIRouter(prefix="/v1/queue", tags=["Queue"])

_STATES = ("waiting", "all")


@router.get("", summary="Show the queues")
async def show_queues(http: Request) -> Response:
    """How the queue of each model stands, how fast its workers are, and how long a new request is likely to wait."""
    roster = await roster_of(http)
    models = roster.models()
    views = await services_of(http)["queues"].view([status.card.id for status in models])
    shown = [_render(status, roster.workers(status.card.id), view) for status, view in zip(models, views, strict=True)]
    return _json({"object": "list", "data": shown})


@router.get("/{model:path}", summary="Show the queue of a model")
async def show_queue(http: Request, model: str) -> Response:
    """The same of one model. Administrators see as well who has how many jobs in it."""
    return await _show(http, services_of(http)["roster"].resolve(model))


@router.post("/{model:path}/pause", summary="Begin no more jobs of a model")
async def pause(http: Request, model: str) -> Response:
    """Requests are accepted and wait; what runs goes on. Needs the scope `admin`."""
    return await _set_gate(http, model, Gate.PAUSED)


@router.post("/{model:path}/drain", summary="Let a model's queue run empty")
async def drain(http: Request, model: str) -> Response:
    """Requests are refused with 503; what waits is served. Needs the scope `admin`."""
    return await _set_gate(http, model, Gate.DRAINING)


@router.post("/{model:path}/resume", summary="Open a model's queue again")
async def resume(http: Request, model: str) -> Response:
    """The end of a pause or a drain. Needs the scope `admin`."""
    return await _set_gate(http, model, Gate.OPEN)


@router.post(
    "/{model:path}/cancel",
    summary="Cancel the jobs of a model",
    openapi_extra={
        "parameters": [
            {
                "name": "state",
                "in": "query",
                "required": False,
                "schema": {"type": "string", "enum": list(_STATES), "default": "waiting"},
                "description": "`all` cancels what runs as well.",
            },
            {
                "name": "owner",
                "in": "query",
                "required": False,
                "schema": {"type": "string"},
                "description": "Only those of this owner, as the view of the queue names it.",
            },
            {
                "name": "lane",
                "in": "query",
                "required": False,
                "schema": {"type": "string", "enum": [lane.value for lane in Lane]},
                "description": "Only those in this lane.",
            },
        ]
    },
)
async def cancel(http: Request, model: str) -> Response:
    """End all that waits at this moment, or part of it. Needs the scope `admin`."""
    require(http, Scope.ADMIN)
    asked = dict(http.query_params)
    state, owner, lane = asked.pop("state", "waiting"), asked.pop("owner", None), asked.pop("lane", None)
    for name in asked:
        # Misspelt, a filter would let others' jobs be cancelled.
        raise invalid(f"Unknown parameter '{name[:40]}': there are state, owner and lane.", name[:40])
    if state not in _STATES:
        raise invalid("Invalid 'state': it should be waiting or all.", "state")
    if lane is not None and lane not in list(Lane):
        raise invalid(f"Invalid 'lane': it should be one of {', '.join(Lane)}.", "lane")
    status = services_of(http)["roster"].resolve(model)
    cancelled = await services_of(http)["queues"].cancel(
        status.card.id, running=state == "all", owner=owner, lane=None if lane is None else Lane(lane)
    )
    return _json({"object": "queue.cancelled", "id": status.card.id, "cancelled": cancelled})


async def _set_gate(http: Request, model: str, gate: Gate) -> Response:
    require(http, Scope.ADMIN)
    status = services_of(http)["roster"].resolve(model)
    await services_of(http)["queues"].set_gate(status.card.id, gate)
    return await _show(http, status)


async def _show(http: Request, status: ModelStatus) -> Response:
    services, model = services_of(http), status.card.id
    [view] = await services["queues"].view([model])
    shown = _render(status, services["roster"].workers(model), view)
    if Scope.ADMIN in http.scope[ALLOWED]:
        shown["owners"] = _owners(await services["queues"].held(model))
    return _json(shown)


def _render(status: ModelStatus, workers: Sequence[Presence], view: QueueView) -> dict[str, Any]:
    waiting = sum(view.waiting.values())
    serving = by_board(workers)
    idle = [{"name": board, "state": "unloaded"} for board in status.boards if board not in serving]
    return {
        "object": "queue",
        "id": status.card.id,
        "state": view.standing.gate.value,
        "waiting": waiting,
        "lanes": {lane.value: count for lane, count in view.waiting.items()},
        "running": view.standing.running,
        # Without a board that serves it nobody can tell.
        "estimated_wait": view.standing.wait(waiting) if status.boards or status.served else None,
        "job_seconds": view.job_seconds,
        "boards": [*map(_board, serving.values()), *idle],
    }


def _board(worker: Presence) -> dict[str, Any]:
    return {
        "name": worker.board,
        "state": worker.state,
        "prefill_tps": worker.prefill_tps,
        "decode_tps": worker.decode_tps,
    }


def _owners(jobs: Sequence[Held]) -> list[dict[str, Any]]:
    waiting = Counter(job.owner for job in jobs if job.state is JobState.QUEUED)
    running = Counter(job.owner for job in jobs if job.state is JobState.RUNNING)
    return [
        {"owner": owner, "waiting": waiting[owner], "running": running[owner]} for owner in sorted(waiting | running)
    ]


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), headers={"cache-control": "no-store"}, media_type="application/json")
