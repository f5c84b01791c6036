"""An answer as a stream of OpenAI chunks, cheap for each token."""

from __future__ import annotations

from typing import Any, ClassVar, assert_never

from api.answer import Waiting
from api.errors import Problem
from api.framing import comment, text_json
from api.openai.translate.answer import DONE, Head, error_frame, frame, timings, usage
from tasks.events import (
    ChoiceEnded,
    Embedded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Queued,
    ReasoningDelta,
    Scored,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
)


class ChunkWriter:
    """Writes the chunks of one answer; what differs between endpoints is in the methods below `broken`.

    All but the text of a chunk is made once for each choice. The finish chunk of a choice is held back until the next
    event, since the last one of an answer also carries its timings.
    """

    kind: ClassVar[str]

    def __init__(self, head: Head) -> None:
        self.head = head
        self._texts: dict[int, list[bytes]] = {}
        self._thoughts: dict[int, list[bytes]] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._held: dict[str, Any] | None = None

    def event(self, event: Event) -> bytes:
        """The frames for one event."""
        match event:
            case TextDelta(text, choice, logprobs) if logprobs:
                return self._release() + self._begin(choice) + frame(self.chunk(self.logged(choice, text, logprobs)))
            case TextDelta(text, choice):
                return self._delta(self._texts, choice, text, thought=False) if text else b""
            case ReasoningDelta(text, choice):
                return self._delta(self._thoughts, choice, text, thought=True) if text else b""
            case ToolCallStarted(index, id, name, choice):
                call = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
                return self._release() + self._begin(choice) + self.tool_call(choice, call)
            case ToolCallDelta(index, arguments, choice):
                return self._release() + self.tool_call(choice, {"index": index, "function": {"arguments": arguments}})
            case ChoiceEnded(choice, reason):
                return self._release() + self._end(choice, reason)
            case Finished():
                return self._finish(event)
            case Queued() | Started() | Embedded() | Scored() | Failed():
                return b""
            case _:
                assert_never(event)

    def waiting(self, waiting: Waiting) -> bytes:
        """A comment with the job's place."""
        return comment(waiting)

    def problem(self, problem: Problem) -> bytes:
        """The frames for an end that was a failure or a cancellation."""
        return self._release() + error_frame(problem)

    def broken(self, problem: Problem) -> bytes:
        """The frame that ends a stream which cannot go on. What is held back is left to whoever resumes it."""
        return error_frame(problem)

    def opening(self, choice: int) -> bytes:
        """The frame before the first delta of a choice."""
        raise NotImplementedError

    def around_delta(self, choice: int, thought: bool) -> list[bytes]:
        """The frame for a delta of that choice, cut where its text belongs."""
        raise NotImplementedError

    def logged(self, choice: int, text: str, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        """The choice as it stands in a chunk with the log probabilities of its text."""
        raise NotImplementedError

    def tool_call(self, choice: int, call: dict[str, Any]) -> bytes:
        """The frame for the beginning or more of a call; none where this kind of answer has no calls."""
        return b""

    def closing(self, choice: int, reason: FinishReason) -> dict[str, Any]:
        """The choice as it stands in its finish chunk."""
        raise NotImplementedError

    def chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        """A chunk with these choices."""
        chunk = self.head.fields(self.kind) | {"choices": list(choices)}
        # With usage asked for, every chunk says that it is not yet here.
        return chunk | {"usage": None} if self.head.include_usage else chunk

    def _delta(self, made: dict[int, list[bytes]], choice: int, text: str, thought: bool) -> bytes:
        parts = made.get(choice)
        if parts is None:
            parts = made[choice] = self.around_delta(choice, thought)
        data = text_json(text).join(parts)
        if choice not in self._begun or self._held is not None:
            return self._release() + self._begin(choice) + data
        return data

    def _begin(self, choice: int) -> bytes:
        if choice in self._begun:
            return b""
        self._begun.add(choice)
        return self.opening(choice)

    def _end(self, choice: int, reason: FinishReason) -> bytes:
        begin = self._begin(choice)
        self._ended.add(choice)
        self._held = self.chunk(self.closing(choice, reason))
        return begin

    def _release(self) -> bytes:
        if self._held is None:
            return b""
        held, self._held = self._held, None
        return frame(held)

    def _finish(self, end: Finished) -> bytes:
        out = b""
        for choice in range(self.head.choices):
            if choice not in self._ended:
                out += self._release() + self._end(choice, end.reason)
        if self.head.include_usage:
            last = self.chunk() | {"usage": usage(end.usage), "timings": timings(end)}
            return out + self._release() + frame(last) + DONE
        if self._held is not None:
            self._held["timings"] = timings(end)
        return out + self._release() + DONE
