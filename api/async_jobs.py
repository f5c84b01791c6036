"""Jobs that nobody waits for: one made of any endpoint's body, and its whole answer, asked for by its id."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from api.auth import owner_of, require
from api.body import Wire, read_body
from api.delivery import begin, headers_of, while_connected
from api.docs_page import takes
from api.drain import close
from api.durations import read_duration
from api.errors import CANCELLED, INTERNAL, HttpProblem, Problem, invalid, of_failed, respond
from api.fronts import Asked, Front
from api.idempotency import TAKEN, key_of
from api.jobs import LONGEST_WAIT, checked_id, render
from api.json_response import json_response
from api.needs import JobBook, fronts_of, services_of, settings_of
from api.webhooks import check_address
from tasks.api_keys import Scope
from tasks.events import Failed, Finished, FinishReason, Unreadable
from tasks.jobs import JobView, Lane, Once

router = APIRouter(prefix="/v1/jobs", tags=["Jobs"])


class JobBody(Wire):
    """The body of `POST /v1/jobs`."""

    endpoint: str = Field(max_length=64)
    body: dict[str, Any]
    lane: Literal["interactive", "background", "batch"] = "background"
    webhook: str | None = Field(None, max_length=2048)


WAIT = {
    "name": "wait",
    "in": "query",
    "required": False,
    "schema": {"type": "string", "examples": ["30s"]},
    "description": "Answer when the job has ended, or after this long; at most 60 s.",
}
SHAPES: tuple[type[BaseModel], ...] = (JobBody,)


@router.post("", summary="Make a job that nobody waits for", openapi_extra=takes(JobBody) | TAKEN)
async def create_job(http: Request) -> Response:
    """Accept what an endpoint would answer, and say at once as which job. It goes on whether or not anybody is connected.
    With an `Idempotency-Key` the same call, sent again, gives the same job."""
    body = await read_body(http, JobBody)
    lane = Lane(body.lane)
    if lane is Lane.BATCH:
        require(http, Scope.BATCH)
    if body.webhook is not None:
        check_address(body.webhook, settings_of(http))
    once = await _once(http, body)
    if once is not None and await services_of(http)["jobs"].has(once):
        return await _made(http, once.job, {"x-job-id": once.job})
    asked = await _read(http, body)
    answer = await begin(
        *(http, asked.model, asked.request),
        stream=False,
        lane=lane,
        rendering=asked.rendering,
        attended=False,
        webhook=body.webhook,
        once=once,
    )
    answer.known = True
    await close(answer)
    return await _made(http, answer.job, headers_of(answer))


async def _once(http: Request, body: JobBody) -> Once | None:
    key = key_of(http)
    if key is None:
        return None
    require(http, Scope.INFERENCE)
    asked = hashlib.blake2b(msgspec.json.encode(body.model_dump(), order="sorted"), digest_size=16).digest()
    return Once(await services_of(http)["jobs"].id_of(owner_of(http), key), asked)


async def _made(http: Request, job: str, headers: dict[str, str]) -> Response:
    place = f"{http.scope.get('root_path', '').rstrip('/')}/v1/jobs/{job}"
    links = {"self": place} | {name: f"{place}/{name}" for name in ("events", "result", "cancel")}
    view = await services_of(http)["jobs"].view(job)
    return json_response(render(view) | {"links": links}, headers | {"location": place}, 202)


async def _read(http: Request, body: JobBody) -> Asked:
    askings = {path: asking for front in fronts_of(http) for path, asking in front.askings.items()}
    if body.endpoint not in askings:
        raise invalid(f"'endpoint' should be one of {', '.join(askings)}.", "endpoint")
    try:
        return await askings[body.endpoint](http, body.body)
    except HttpProblem as error:
        param = error.problem.param
        raise HttpProblem(replace(error.problem, param=f"body.{param}" if param else "body")) from None


@router.get("/{job}/result", summary="Show the whole answer of a job", openapi_extra={"parameters": [WAIT]})
async def job_result(http: Request, job: str) -> Response:
    """The answer, or the error, as the endpoint would have given it to a client that asks for no stream."""
    jobs = services_of(http)["jobs"]
    wait = http.query_params.get("wait")
    seconds = read_duration(wait, "wait", LONGEST_WAIT) if wait else 0.0
    view = await jobs.view(checked_id(job))
    if seconds > 0 and view.ended_at is None:
        view = await while_connected(http, _end_of(jobs, view, seconds))
    if view.ended_at is None:
        message = f"The job '{job}' has not ended, it is {view.state.value}. Ask again, with `?wait=60s` perhaps."
        raise HttpProblem(Problem(409, "job_not_ended", message, retry_after=1.0, job=job))
    said = await jobs.answer(job)
    if said.rendering is None:
        message = f"How the answer of the job '{job}' is said was not kept. Its events can be read as application/json."
        raise HttpProblem(Problem(400, "no_result", message, job=job))
    name = said.rendering.front
    front = next((front for front in fronts_of(http) if front.name == name), None)
    if front is None:
        raise Unreadable(f"This version does not speak '{name}', in which the answer is to be said.")
    headers = {"x-job-id": job, "cache-control": "no-store"}
    match said.events[-1]:
        case Finished(reason=FinishReason.CANCELLED):
            return _problem(front, replace(CANCELLED, job=job))
        case Finished() as end:
            return json_response(front.whole(said.rendering.head, said.events, end), headers)
        case Failed() as failed:
            return _problem(front, of_failed(failed, job))
        case _:
            return _problem(front, replace(INTERNAL, job=job))


async def _end_of(jobs: JobBook, view: JobView, seconds: float) -> JobView:
    """The job once it has ended, else as it is after so long."""
    now = asyncio.get_running_loop().time
    end = now() + seconds
    while view.ended_at is None and (left := end - now()) > 0:
        view = await jobs.wait(view.id, view, left)
    return view


def _problem(front: Front, problem: Problem) -> Response:
    """In the words of the endpoint, and not of this page."""
    return respond(replace(problem, status=front.statuses.get(problem.status, problem.status)), front.render)
