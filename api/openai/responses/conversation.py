"""The conversation that a request goes on with: read with its body, and found with the responses that are stored."""

from __future__ import annotations

from starlette.requests import Request

from api.auth import owner_of
from api.body import check, parse, read_bytes
from api.errors import HttpProblem, Problem, invalid
from api.needs import services_of, settings_of
from api.openai.responses.items import Items, with_types
from api.openai.responses.schemas import ResponseBody
from api.openai.responses.stored import Conversation, Stored, encode, job_of, job_of_item
from tasks.errors import JobNotFound
from tasks.events import Unreadable
from tasks.jobs import is_job_id


async def read(http: Request) -> tuple[ResponseBody, Items, bytes]:
    """The body, the whole conversation that it goes on with, and the same as it is kept. Raises `HttpProblem`."""
    settings = settings_of(http)
    data = parse(await read_bytes(http, settings))
    body = check(data, ResponseBody, settings)
    sent = data.get("input") or []
    own = with_types([{"role": "user", "content": sent}] if isinstance(sent, str) else sent)
    history = await history_of(http, body.previous_response_id)
    own = await _resolved(http, own)
    if len(history) + len(own) > settings.max_messages:
        raise invalid(
            f"The conversation has {len(history) + len(own)} items with what went before, and may have {settings.max_messages}.",
            "input",
        )
    conversation = encode(Conversation(history, own))
    if len(conversation) > settings.max_body:
        raise HttpProblem(
            Problem(
                *(413, "request_too_large"),
                f"The conversation has {len(conversation)} bytes with what went before, and may have {settings.max_body}.",
                "previous_response_id",
            )
        )
    return body, history + own, conversation


async def history_of(http: Request, previous: str | None) -> Items:
    """What was said up to the end of that response."""
    if previous is None:
        return []
    try:
        return (await find(http, job_of(previous))).conversation
    except JobNotFound:
        shown = previous if len(previous) <= 60 else previous[:60] + "…"
        raise HttpProblem(
            Problem(
                *(404, "previous_response_not_found", f"Previous response with id '{shown}' not found."),
                "previous_response_id",
                retry=False,
            )
        ) from None


async def _resolved(http: Request, items: Items) -> Items:
    """The items, each reference to one of an earlier response replaced by that."""
    found: dict[str, Items] = {}
    resolved: Items = []
    for item in items:
        if item["type"] != "item_reference":
            resolved.append(item)
            continue
        job = job_of_item(item["id"])
        try:
            if job not in found:
                found[job or ""] = (await find(http, job)).conversation
            resolved.append(next(each for each in found[job or ""] if each["id"] == item["id"]))
        except (JobNotFound, StopIteration):
            message = (
                f"Item with id '{item['id'][:60]}' not found. Items are kept with the response that they are part of."
            )
            raise HttpProblem(Problem(404, None, message, "input", retry=False)) from None
    return resolved


async def find(http: Request, job: str | None) -> Stored:
    """The stored response of that job, which this client asked for. Raises `JobNotFound`, and `HttpProblem`."""
    if job is None or not is_job_id(job):
        raise JobNotFound(job or "")
    kept = await services_of(http)["jobs"].kept(job)
    if kept.owner != owner_of(http):
        raise JobNotFound(job)
    try:
        return Stored(job, kept)
    except Unreadable as error:
        raise HttpProblem(Problem(500, "unreadable_record", str(error), retry=False, job=job)) from error
