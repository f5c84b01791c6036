"""A response as a stream of its events, and as an object made of the events of its job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from api.answer import Waiting
from api.errors import CANCELLED, Problem, of_failed
from api.framing import comment, unbroken
from api.openai.responses.head import Head, completed_at, response, usage
from api.openai.responses.output import Output, Step
from tasks.events import Event, Failed, Finished, FinishReason, Queued, Started


def ended(head: Head, output: Output, end: Finished | Failed) -> dict[str, Any]:
    """The response at its end. What is open in its output is closed."""
    whole = isinstance(end, Finished) and end.reason in (FinishReason.STOP, FinishReason.TOOL_CALLS)
    output.end(whole=whole)
    match end:
        case Failed():
            return failed(head, output, of_failed(end))
        case Finished(FinishReason.CANCELLED, counts):
            return response(head, "cancelled", output.items, usage=usage(counts))
        case Finished(FinishReason.LENGTH, counts):
            return response(head, "incomplete", output.items, reason="max_output_tokens", usage=usage(counts))
        case Finished(_, counts, timings):
            completed = completed_at(head, timings)
            return response(head, "completed", output.items, usage=usage(counts), completed=completed)


def failed(head: Head, output: Output, problem: Problem) -> dict[str, Any]:
    """The response that failed, with what it had said."""
    output.end(whole=False)
    error = {"code": problem.code or "server_error", "message": problem.message}
    return response(head, "failed", output.items, error=error)


def response_of(head: Head, events: Iterable[Event]) -> tuple[dict[str, Any], bool]:
    """The response as it stands after these events, and whether that was its end."""
    output = Output(head)
    status = "queued" if head.background else "in_progress"
    for event in events:
        match event:
            case Finished() | Failed():
                return ended(head, output, event), True
            case Started():
                status = "in_progress"
            case _:
                output.event(event)
    output.settle()
    return response(head, status, output.items), False


class ResponseWriter:
    """Writes the events of one response, numbered from 0."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._output = Output(head)
        self._number = 0
        self._begun = False
        self._started = False

    def event(self, event: Event) -> bytes:
        """The frames for one event."""
        match event:
            case Queued():
                return self._frames(self._begin())
            case Started():
                return self._frames(self._begin() + self._start())
            case Finished():
                steps = self._begin() + self._start()
                # Where its one answer was not said to be over, the job's own end says why it is.
                steps += self._output.end(whole=event.reason is not FinishReason.LENGTH)
                body = ended(self.head, self._output, event)
                return self._frames([*steps, (f"response.{body['status']}", {"response": body})])
            case _:
                said = self._output.event(event)
                return self._frames(said if self._started else self._begin() + self._start() + said)

    def waiting(self, waiting: Waiting) -> bytes:
        """A comment with the job's place."""
        return comment(waiting)

    def problem(self, problem: Problem) -> bytes:
        """The frames for an end that was a failure or a cancellation; for the latter there is no event of its own."""
        body = failed(self.head, self._output, problem)
        if problem.code == CANCELLED.code:
            body |= {"status": "cancelled", "error": None}
        return self._frames([*self._begin(), ("response.failed", {"response": body})])

    def broken(self, problem: Problem) -> bytes:
        """The frame that ends a stream which cannot go on. It repeats the last number, from which the stream is gone on with."""
        fields = {"code": problem.code, "message": problem.message, "param": problem.param}
        return frame("error", max(0, self._number - 1), fields)

    def _begin(self) -> list[Step]:
        if self._begun:
            return []
        self._begun = True
        if self.head.background:
            body = response(self.head, "queued", [])
            return [("response.created", {"response": body}), ("response.queued", {"response": body})]
        body = response(self.head, "in_progress", [])
        self._started = True
        return [("response.created", {"response": body}), ("response.in_progress", {"response": body})]

    def _start(self) -> list[Step]:
        if self._started:
            return []
        self._started = True
        return [("response.in_progress", {"response": response(self.head, "in_progress", [])})]

    def _frames(self, steps: list[Step]) -> bytes:
        out = b""
        for kind, fields in steps:
            out += frame(kind, self._number, fields)
            self._number += 1
        return out


def frame(kind: str, number: int, fields: dict[str, Any]) -> bytes:
    """One event on the wire."""
    data = msgspec.json.encode({"type": kind, "sequence_number": number, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data if data.isascii() else unbroken(data))
