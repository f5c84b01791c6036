"""An answer as a stream of Anthropic events, cheap for each token."""

from __future__ import annotations

import hashlib
from typing import Any, assert_never

import msgspec

from api.answer import Waiting
from api.anthropic.problems import render
from api.anthropic.translate.answer import Head, seal, usage
from api.anthropic.translate.prompt import CALL_ID
from api.errors import Problem
from api.framing import comment, text_json
from tasks.events import (
    ChoiceEnded,
    Embedded,
    Event,
    Failed,
    Finished,
    Queued,
    ReasoningDelta,
    Scored,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)

MARK = "\ue000"
"""Stands for the text of a delta while its frame is made."""

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

HIDDEN_DELTAS = 32
"""Deltas of thoughts that are not shown between two pings, which tell a client that something happens."""


def frame(kind: str, **fields: Any) -> bytes:
    """One event. For the few of an answer, not for each of its tokens."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


class BlockWriter:
    """Writes the events of one answer: its message begins, blocks of content follow each other, the message ends.

    All but the text of a delta is made once for each block.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        self._begun = False
        self._index = -1
        self._kind: str | None = None
        """Of the block that is open."""
        self._parts: list[bytes] = []
        self._digest = hashlib.sha256()
        self._hidden = 0
        self._ended: ChoiceEnded | None = None

    def event(self, event: Event) -> bytes:
        """The frames for one event."""
        begin = b""
        if not self._begun:
            self._begun = True
            begin = frame("message_start", message=self.head.message())
        return begin + self._say(event)

    def waiting(self, waiting: Waiting) -> bytes:
        """A comment with the job's place, and a ping for clients that look for one."""
        return comment(waiting) + PING

    def problem(self, problem: Problem) -> bytes:
        """The frame for an end that was a failure or a cancellation."""
        return b"event: error\ndata: %b\n\n" % render(problem)

    def broken(self, problem: Problem) -> bytes:
        """The same of a stream that cannot go on."""
        return self.problem(problem)

    def _say(self, event: Event) -> bytes:
        match event:
            case TextDelta(text):
                return self._delta("text", text) if text else b""
            case ReasoningDelta(text):
                return self._thought(text) if text else b""
            case ToolCallStarted(_, id, name):
                return self._open("tool_use", id=CALL_ID + id, name=name, input={})
            case ToolCallDelta(_, arguments):
                return text_json(arguments).join(self._parts) if arguments else b""
            case ChoiceEnded():
                self._ended = event
                return self._close()
            case Finished():
                return self._close() + self._finish(event)
            case Queued() | Started() | Embedded() | Scored() | Failed():
                return b""
            case _:
                assert_never(event)

    def _delta(self, kind: str, text: str) -> bytes:
        opening = b"" if self._kind == kind else self._open(kind)
        return opening + text_json(text).join(self._parts)

    def _thought(self, text: str) -> bytes:
        if self.head.thoughts == "hidden":
            return self._silence()
        opening = b"" if self._kind == "thinking" else self._open("thinking")
        self._digest.update(text.encode())
        return opening + (text_json(text).join(self._parts) if self.head.thoughts == "shown" else self._silence())

    def _silence(self) -> bytes:
        self._hidden += 1
        return PING if self._hidden % HIDDEN_DELTAS == 1 else b""

    def _open(self, kind: str, **fields: Any) -> bytes:
        """The frames that end the block before and begin one; its deltas are ready to be made."""
        closing = self._close()
        self._index += 1
        self._kind = kind
        name, text = _DELTAS[kind]
        delta = frame("content_block_delta", index=self._index, delta={"type": name, text: MARK})
        self._parts = delta.rsplit(msgspec.json.encode(MARK), 1)
        block = {"type": kind, **(_EMPTY.get(kind, {}) | fields)}
        return closing + frame("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        kind, self._kind = self._kind, None
        if kind is None:
            return b""
        signature = b""
        if kind == "thinking":
            delta = {"type": "signature_delta", "signature": seal(self._digest)}
            signature = frame("content_block_delta", index=self._index, delta=delta)
            self._digest = hashlib.sha256()
        return signature + frame("content_block_stop", index=self._index)

    def _finish(self, end: Finished) -> bytes:
        ended = self._ended
        ending = self.head.ending(ended.reason, ended.stop_sequence) if ended else self.head.ending(end.reason, None)
        return frame("message_delta", delta=ending, usage=usage(end.usage)) + frame("message_stop")


_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""For each kind of block what its deltas are called, and their text."""
_EMPTY: dict[str, dict[str, Any]] = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
