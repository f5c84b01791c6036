"""Recorded exchanges: a request, the events that the queue answers with, and the response, as a front's `golden/` has them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from api.answer import Waiting
from tasks.errors import QueueFull, UnknownModel
from tasks.events import (
    ChoiceEnded,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    Timings,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from tests.api.scripted import CARD, TINY, Step
from tests.api.site import Site, site

HEADERS = (
    *("content-type", "retry-after", "x-should-retry", "x-queue-position", "x-job-id", "allow"),
    *("openai-version", "request-id", "anthropic-ratelimit-requests-remaining"),
)


def step(line: list[Any]) -> Step:
    """One event, written as its name and its fields."""
    name, *fields = line
    match name:
        case "queued":
            return Queued()
        case "started":
            return Started("w", "b")
        case "text":
            return msgspec.convert(["text", *fields], TextDelta)
        case "reasoning":
            return ReasoningDelta(*fields)
        case "call":
            return ToolCallStarted(*fields)
        case "arguments":
            return ToolCallDelta(*fields)
        case "ended":
            return ChoiceEnded(fields[0], FinishReason(fields[1]), *fields[2:])
        case "finished":
            return Finished(FinishReason(fields[0]), Usage(*fields[1]), Timings(*fields[2]))
        case "failed":
            return Failed(FailureCode(fields[0]), *fields[1:])
        case "waiting":
            return Waiting(*fields)
        case "unknown_model":
            return UnknownModel(*fields)
        case "queue_full":
            return QueueFull(*fields)
    raise AssertionError(f"no step is called {name}")


def play(place: Site, exchange: dict[str, Any]) -> dict[str, Any]:
    """The response to an exchange's request, with what is of the moment taken out."""
    steps = [step(line) for line in exchange["events"]]
    if steps and isinstance(steps[0], Exception):
        place.relay.refuse(steps[0])
    else:
        place.relay.play(*steps, waiting=Waiting(*exchange["waiting"]) if "waiting" in exchange else None)
    if "card" in exchange:
        card = msgspec.structs.replace(CARD, **exchange["card"])
        place.world.roster.known = [msgspec.structs.replace(TINY, card=card)]
    asked = exchange["request"]
    reply = place.http.request(asked["method"], asked["path"], json=asked.get("body"), headers=asked.get("headers"))
    response: dict[str, Any] = {
        "status": reply.status_code,
        "headers": {name: reply.headers[name] for name in HEADERS if name in reply.headers},
    }
    # Ids and times are of the moment.
    response["headers"] |= {"request-id": "req_"} if "request-id" in response["headers"] else {}
    text = re.sub(r'"request_id":"req_\w+"', '"request_id":"req_"', reply.text)
    text = re.sub(r'"(created|created_at|completed_at)":\d{10}', r'"\1":0', text)
    text = re.sub(r'"(created|expires)_at":"20[^"]*"', r'"\1_at":"then"', text)
    if reply.headers["content-type"].startswith("application/json"):
        response["body"] = json.loads(text)
    else:
        response["frames"] = text.split("\n" if "ndjson" in reply.headers["content-type"] else "\n\n")
    return response


def record(files: Sequence[Path]) -> None:
    """Write the response of every exchange anew."""
    with site(drain=0) as place:
        for path in files:
            exchange = json.loads(path.read_text(encoding="utf-8"))
            exchange["response"] = play(place, exchange)
            path.write_text(json.dumps(exchange, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
