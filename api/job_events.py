"""The events of a job: the answer's stream gone on with where a client lost it, or plain events for programs that poll."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.answer import Answer
from api.drain import close
from api.errors import HttpProblem, Problem, invalid
from api.framing import BEGINNING, AnswerStream, Place
from api.fronts import InOnePiece
from api.jobs import checked_id
from api.needs import drain_of, fronts_of, services_of, settings_of
from tasks.events import Mark, Numbered, Unreadable
from tasks.job_records import Page

router = APIRouter(prefix="/v1/jobs", tags=["Jobs"])

_PLACE = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,19}))?(?:\.([0-9]{1,4}))?")

_AFTER = {
    "name": "after",
    "in": "query",
    "required": False,
    "schema": {"type": "string", "examples": ["17-1234567890"]},
    "description": "Only what follows the frame or event with this id. A number alone is taken without a check that the record "
    "still holds what was read. The header `Last-Event-ID` says the same, and wins.",
}


@router.get("/{job}/events", summary="Go on with a job's stream", openapi_extra={"parameters": [_AFTER]})
async def job_events(http: Request, job: str) -> Response:
    """The stream as it was begun, from its start or from behind `after`; with `Accept: application/json` a page of events.

    204 when the stream was read to its end.
    """
    checked_id(job)
    after, read = _place(http)
    accept = http.headers.get("accept", "")
    if "application/json" in accept and "text/event-stream" not in accept:
        return _page(job, await services_of(http)["jobs"].events(job, after.seq))
    answer, attended = await services_of(http)["relay"].resume(job, read)
    try:
        if attended.ended and after >= Place(attended.last.seq) and read in (None, attended.last):
            await close(answer)
            return Response(status_code=204, headers={"x-job-id": job})
        return _stream(http, answer, after)
    except BaseException:
        await close(answer)
        raise


def _stream(http: Request, answer: Answer, after: Place) -> Response:
    rendering = answer.rendering
    if rendering is None:
        raise _no_stream(answer.job)
    try:
        front = next(front for front in fronts_of(http) if front.name == rendering.front)
        writer = front.writer(rendering.head)
    except InOnePiece:
        raise _no_stream(answer.job) from None
    except (StopIteration, Unreadable) as error:
        message = str(error) or f"This version does not speak '{rendering.front}', in which the stream was begun."
        raise HttpProblem(Problem(500, "unreadable_record", message, retry=False, job=answer.job)) from error
    stalled = settings_of(http).stalled_client
    headers = {"x-job-id": answer.job}
    return AnswerStream(
        answer, writer, drain_of(http), headers=headers, stalled=stalled, after=after, lines=front.lines
    )


def _no_stream(job: str) -> HttpProblem:
    message = f"The answer of the job '{job}' comes in one piece, so it has no stream. Ask for application/json."
    return HttpProblem(Problem(400, "no_stream", message, job=job))


def _place(http: Request) -> tuple[Place, Mark | None]:
    """From where to go on, and what the record must hold for that, where that was said."""
    # A browser says in the header how far it came, and has the address it began with.
    for name, text in (("Last-Event-ID", http.headers.get("last-event-id")), ("after", http.query_params.get("after"))):
        if text:
            match = _PLACE.fullmatch(text)
            if match is None:
                raise invalid(
                    f"Invalid '{name}': it should be the id of a frame or event, such as 17-5 or 17-5.1.", name
                )
            seq, part = int(match[1]), match[3]
            place = Place(max(0, seq - 1), int(part)) if part else Place(seq)
            return place, Mark(seq, int(match[2])) if match[2] else None
    return BEGINNING, None


def _page(job: str, page: Page) -> Response:
    events = [_named(item) for item in page.events]
    body = {"object": "list", "data": events, "has_more": page.more, "ended": page.ended}
    headers = {"x-job-id": job, "cache-control": "no-store"}
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")


def _named(item: Numbered) -> dict[str, Any]:
    """An event with names where the record has positions."""
    event = item.event
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    for name in ("usage", "timings"):
        if name in fields:
            fields[name] = {part: getattr(fields[name], part) for part in fields[name].__struct_fields__}
    logprobs = fields.pop("logprobs", ())
    if logprobs:
        fields["logprobs"] = [
            {
                "token": _text(each.token),
                "logprob": each.logprob,
                "top": [[_text(token), value] for token, value in each.top],
            }
            for each in logprobs
        ]
    return {"id": item.seq, "type": event.__struct_config__.tag} | fields


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
