"""A job followed from its beginning, whoever asked for it: its events, read without keeping it going."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from ops.chat.answer import Piece
from ops.chat.screen import Screen, note
from ops.service import Service, ServiceAway

LOOK = 0.25
"""Seconds between two looks at a job of which nothing new was there."""
SILENCE = 2.0
"""Seconds of that until it is said what the job waits for."""


def follow(service: Service, job: str, tell: Callable[[str], None] = note) -> Iterator[dict[str, Any]]:
    """Its events until its end, through times in which the service is away, of which `tell` hears. Raises `ServiceError`."""
    after = 0
    away = False
    heard, told = time.monotonic(), ""
    page = service.events_page(job, after)
    while True:
        for event in page["data"]:
            after, heard = event["id"], time.monotonic()
            yield event
        if page["ended"] and not page["has_more"]:
            return
        if not page["data"]:
            time.sleep(LOOK)
        try:
            if time.monotonic() - heard > SILENCE:
                heard, words = time.monotonic(), _waits_for(service, job)
                if words and words != told:
                    told = words
                    tell(f"Waiting: {words}.")
            page, away = service.events_page(job, after), False
        except ServiceAway as error:
            if not away:
                tell(f"{error} Waiting for it to come back.")
            page, away = {"data": [], "ended": False, "has_more": False}, True


def _waits_for(service: Service, job: str) -> str:
    """Its place in the queue and what keeps it besides others; empty where it does not wait."""
    found, held = service.job(job), service.why(job)["why"]
    if found["position"] is None:
        return ""
    return f"position {found['position']}" + (f", {held.rstrip('.')}" if held else "")


def show(events: Iterator[dict[str, Any]], screen: Screen, *, as_json: bool) -> bool:
    """Write them as they come, text as text; whether the job came to a good end."""
    choice = 0
    well = False
    for event in events:
        well = event["type"] == "finished" and event["reason"] != "cancelled"
        if as_json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
            continue
        if event.get("choice", choice) != choice:
            choice = event["choice"]
            screen.end()
            note(f"Answer {choice + 1}:")
        match event["type"]:
            case "text" | "reasoning" as kind:
                screen.show(Piece(event["text"], kind == "reasoning"))
            case "started":
                screen.end()
                note(f"Started on {event['board']}.")
            case "call":
                screen.end()
                note(f"Calls {event['name']}:")
            case "arguments":
                screen.show(Piece(event["arguments"], False))
            case "failed":
                screen.end()
                note(event["message"])
            case "finished":
                screen.end()
                note(_told(event))
    return well


def _told(end: dict[str, Any]) -> str:
    usage, times = end["usage"], end["timings"]
    how = "Cancelled" if end["reason"] == "cancelled" else "Finished"
    speed = f" at {usage['completion_tokens'] / times['decode_ms'] * 1000:.1f} tokens/s" if times["decode_ms"] else ""
    return f"{how}: {usage['prompt_tokens']} tokens read, {usage['completion_tokens']} said{speed}."
