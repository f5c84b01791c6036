"""What is known of the requests of widely used clients: which of them nobody waits for, and where a clock stands in them."""

from __future__ import annotations

import re

import msgspec

from tasks.requests import ChatRequest, Request

_TASK = re.compile(r"### Task:\s")
_HISTORY = "<chat_history>"
_WANTED = re.compile(r'"(?:title|tags|follow_ups)"\s*:')

_CLOCK = re.compile(
    r"(Current time is \d{1,2}:\d{2}(?::\d{2})?\. Today's date is \d{4}-\d{2}-\d{2}\.)[ \t]*\n+(?=\S)",
)


def is_side_request(request: Request) -> bool:
    """Whether Open WebUI asks for the title, the tags or the follow-ups of a chat, which it does beside each answer.

    Known by one turn of a user that states a task, wants JSON with one of these keys, and then tells the chat.
    """
    if not isinstance(request, ChatRequest) or len(request.messages) != 1:
        return False
    [turn] = request.messages
    task, told, _ = turn.content.partition(_HISTORY)
    return bool(turn.role == "user" and told and _TASK.match(task) and _WANTED.search(task))


def clock_last(request: ChatRequest) -> ChatRequest:
    """The same with the clock at the end of its system message, where Home Assistant begins it with one.

    A prompt that begins with the seconds of the day shares nothing with the one before, and is read anew from its start.
    """
    first = request.messages[0] if request.messages else None
    clock = _CLOCK.match(first.content) if first is not None and first.role == "system" else None
    if first is None or clock is None:
        return request
    moved = msgspec.structs.replace(first, content=f"{first.content[clock.end() :].rstrip()}\n{clock[1]}")
    return msgspec.structs.replace(request, messages=(moved, *request.messages[1:]))
