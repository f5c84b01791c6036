"""What is kept of a response: how it is said, in its job's record, and its conversation, beside that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from api.errors import HttpProblem, Problem, invalid
from api.openai.responses.head import PREFIX, Head
from api.openai.responses.items import Items
from api.openai.responses.writer import ResponseWriter, response_of
from tasks.errors import JobNotFound
from tasks.events import Event, Finished, Unreadable
from tasks.job_records import KeptJob
from tasks.jobs import ENDED, JobState, Rendering

NAME = "responses"
"""Of this front."""
VERSION = 1

PREFIXES = {
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
"""How the ids of items begin that came without one; those of messages with `msg`."""

_ITEM = re.compile(r"[a-z]{1,5}_([a-z2-7]{22})_(i?)([0-9]{1,6})")


class Conversation(msgspec.Struct, frozen=True):
    """The items of a request: `history` is what went before, with ids, `items` what it added itself."""

    history: Items
    items: Items
    version: int = VERSION


class _Said(msgspec.Struct, frozen=True):
    head: Head
    version: int = VERSION


_encoder = msgspec.json.Encoder()
_heads = msgspec.json.Decoder(_Said)
_conversations = msgspec.json.Decoder(Conversation)


def keep(head: Head) -> Rendering:
    """What this front has to know of a response to say it anew."""
    return Rendering(NAME, _encoder.encode(_Said(head)))


def head_in(rendering: Rendering | None) -> Head | None:
    """That of a response; None where it is an answer of another kind. Raises `Unreadable`."""
    if rendering is None or rendering.front != NAME:
        return None
    try:
        said = _heads.decode(rendering.head)
    except msgspec.DecodeError as error:
        raise Unreadable(
            f"How this response is said was written by another version of rockchipllama: {error}"
        ) from error
    _check(said.version)
    return said.head


def writer_of(head: bytes) -> ResponseWriter:
    """A writer of the response for which this was kept. Raises `Unreadable`."""
    found = head_in(Rendering(NAME, head))
    assert found is not None
    return ResponseWriter(found)


def whole(head: bytes, events: Sequence[Event], end: Finished) -> dict[str, Any]:
    """The whole of the response for which this was kept. Raises `Unreadable`."""
    return response_of(writer_of(head).head, events)[0]


def _check(version: int) -> None:
    if version > VERSION:
        raise Unreadable(
            f"This response was stored by a newer version of rockchipllama (format {version}, this one reads up to "
            f"{VERSION}). Upgrade this machine."
        )


def encode(conversation: Conversation) -> bytes:
    """As it stands beside the job's record."""
    return _encoder.encode(conversation)


class Stored:
    """A stored response as its client asks for it. Raises `Unreadable`."""

    def __init__(self, job: str, kept: KeptJob) -> None:
        head = head_in(kept.rendering)
        if head is None:
            raise JobNotFound(job)
        self.head: Head = head
        self.state: JobState = kept.state
        self.body, self.ended = response_of(head, kept.events)
        try:
            self._conversation = _conversations.decode(kept.data)
        except msgspec.DecodeError as error:
            raise Unreadable(f"This response was stored by another version of rockchipllama: {error}") from error
        _check(self._conversation.version)

    @property
    def input(self) -> Items:
        """All that the model was given but the instructions, each item with an id."""
        own = [
            item if "id" in item else {"id": f"{_prefix(item)}_{self.head.job}_i{place}", **item}
            for place, item in enumerate(self._conversation.items)
        ]
        return self._conversation.history + own

    @property
    def conversation(self) -> Items:
        """All that was said, in both directions. Raises `HttpProblem` while it still goes on."""
        if not self.ended and self.state not in ENDED:
            raise invalid(
                f"The response '{self.body['id']}' has not ended yet. Wait for it, or cancel it, before you go on with it.",
                "previous_response_id",
                "previous_response_not_ended",
            )
        return self.input + [_bare(item) for item in self.body["output"] if _said_something(item)]


def _said_something(item: dict[str, object]) -> bool:
    # A call that was cut off is nothing that a tool could answer.
    return item["status"] == "completed" or item["type"] in ("message", "reasoning")


def _bare(item: dict[str, Any]) -> dict[str, Any]:
    """The item without its log probabilities, which are many times its text."""
    if item["type"] != "message":
        return item
    return item | {"content": [part | {"logprobs": []} for part in item["content"]]}


def _prefix(item: dict[str, object]) -> str:
    return PREFIXES.get(str(item["type"]), "msg")


def job_of(response: str) -> str | None:
    """The job behind the id of a response; None where it is no such id."""
    return response.removeprefix(PREFIX) if response.startswith(PREFIX) else None


def job_of_item(item: str) -> str | None:
    """The job of the response that an item belongs to, by the item's id; None where it is no id of ours."""
    match = _ITEM.fullmatch(item)
    return match[1] if match else None


def missing(response: str) -> HttpProblem:
    """There is no such response, or it is somebody else's: whoever asks is not told which."""
    shown = response if len(response) <= 60 else response[:60] + "…"
    return HttpProblem(Problem(404, None, f"Response with id '{shown}' not found.", retry=False))
