"""An answer as a stream of Ollama lines, cheap for each token."""

from __future__ import annotations

from typing import Any, ClassVar, assert_never

import msgspec

from api.answer import Waiting
from api.errors import Problem
from api.framing import text_json, unbroken
from api.ollama.problems import render
from api.ollama.translate.answer import DONE, Head, call, counts, cut_off, logprobs
from tasks.events import (
    ChoiceEnded,
    Embedded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Queued,
    ReasoningDelta,
    Reply,
    Scored,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    WholeCall,
)

MARK = "\ue000"
"""Stands for the text of a line while its frame is made."""
WARM = b" "
"""Before a value stands as much white space as there is: every reader of JSON skips it, while an empty line is an error."""


def line(value: dict[str, Any]) -> bytes:
    """An object as a line. For the few lines of an answer, not for each of its tokens."""
    return unbroken(msgspec.json.encode(value)) + b"\n"


class LineWriter:
    """Writes the lines of one answer; what differs between endpoints is in the methods below `broken`.

    All but the text of a line is made once. A call is said when it is whole: clients read its arguments as an object.
    """

    kind: ClassVar[str]

    def __init__(self, head: Head) -> None:
        self.head = head
        self._text = self._around(self.said(MARK))
        self._thought = self._around(self.thought(MARK))
        self._call: WholeCall | None = None
        self._calls = 0
        self._reason: FinishReason | None = None

    def event(self, event: Event) -> bytes:
        """The lines for one event."""
        match event:
            case TextDelta(text, _, tokens):
                if tokens:
                    return self._release() + self._line(self.said(text) | {"logprobs": logprobs(tokens)})
                return self._release() + text_json(text).join(self._text) if text else b""
            case ReasoningDelta(text):
                return self._release() + text_json(text).join(self._thought) if text else b""
            case ToolCallStarted(_, id, name):
                before = self._release()
                self._call = WholeCall(id, name)
                return before
            case ToolCallDelta(_, arguments):
                if self._call is not None:
                    self._call.arguments += arguments
                return b""
            case ChoiceEnded(_, reason):
                self._reason = reason
                return self._release()
            case Finished():
                end = {"done": True, "done_reason": DONE[self._reason or event.reason]}
                return self._release() + self._line(self.last() | end | counts(event))
            case Queued() | Started() | Embedded() | Scored() | Failed():
                return b""
            case _:
                assert_never(event)

    def waiting(self, waiting: Waiting) -> bytes:
        """There are no comments between lines of JSON, so the place is in the headers only."""
        return WARM

    def problem(self, problem: Problem) -> bytes:
        """The lines for an end that was a failure or a cancellation."""
        return self._release() + self.broken(problem)

    def broken(self, problem: Problem) -> bytes:
        """The line that ends a stream which cannot go on."""
        return unbroken(render(problem)) + b"\n"

    def whole(self, reply: Reply, end: Finished) -> dict[str, Any]:
        """The answer to a client that did not ask for a stream."""
        raise NotImplementedError

    def said(self, text: str) -> dict[str, Any]:
        """The fields of a line with more of the answer."""
        raise NotImplementedError

    def thought(self, text: str) -> dict[str, Any]:
        """The fields of a line with more of the thinking."""
        raise NotImplementedError

    def called(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """The fields of a line with calls."""
        raise NotImplementedError

    def last(self) -> dict[str, Any]:
        """The fields of the last line, but for what every answer ends with."""
        return self.said("")

    def _line(self, fields: dict[str, Any]) -> bytes:
        return line(self.head.fields() | {"done": False} | fields)

    def _around(self, fields: dict[str, Any]) -> list[bytes]:
        # From the right: the model's name stands before the text, and a client chose it.
        return self._line(fields).rsplit(msgspec.json.encode(MARK), 1)

    def _release(self) -> bytes:
        """The call that has become whole, if there is one."""
        if self._call is None:
            return b""
        whole, self._call = self._call, None
        said = call(self._calls, whole)
        if said is None:
            return self._line(self.said(cut_off(whole)))
        self._calls += 1
        return self._line(self.called([said]))
