"""One streamed answer of a running service, gone on with where its connection broke."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

import httpx

from ops.service import Service, ServiceAway, ServiceError

GRACE = 300
"""Seconds that the service is asked to go on for while the connection is broken."""
PATIENCE = 120.0
"""Seconds that a service which went away in the middle is waited for; a board needs some to load a model."""
PAUSE = 0.5
"""Seconds between two tries."""


class AnswerFailed(ServiceError):
    """Raised when an answer ended with an error; the message is for the user."""


class Piece(NamedTuple):
    """A piece of an answer."""

    text: str
    thought: bool


class Answer:
    """Iterating asks for the answer and yields its pieces; what became of it is in the attributes then.

    Iterating raises `ServiceError` when the service refuses it or it fails, `ServiceAway` when the service is not there, or does
    not come back within `PATIENCE` seconds.
    """

    def __init__(self, service: Service, asked: dict[str, Any], tell: Callable[[str], None]) -> None:
        """`asked` is the body of a chat completion. `tell` is given a sentence when the connection breaks, and while the answer
        is waited for one that says for what."""
        self._service = service
        self._asked = asked | {"stream": True, "stream_options": {"include_usage": True}}
        self._tell = tell
        self._last = ""
        self._waits = ""
        self.job: str | None = None
        self.model: str | None = None
        self.content = ""
        self.reasoning = ""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.timings: dict[str, Any] | None = None
        self.first: float | None = None
        """Seconds until the first piece."""
        self.broke = ""
        """What broke its connection, where something did."""
        self.sent: float | None = None
        """When the request began to go out, by `time.perf_counter`."""

    def __iter__(self) -> Iterator[Piece]:
        began = heard = time.monotonic()
        away = False
        while True:
            try:
                for piece in self._pieces():
                    heard, away = time.monotonic(), False
                    if self.first is None:
                        self.first = heard - began
                    yield piece
                return
            except ServiceAway as error:
                if self.job is None or time.monotonic() - heard > PATIENCE:
                    raise
                self.broke = str(error)
                if not away:
                    self._tell(f"{error} Waiting for it to come back.")
                away = True
                time.sleep(PAUSE)

    def cancel(self) -> None:
        """End it, if it has begun and the service is there."""
        if self.job is not None:
            with suppress(ServiceError):
                self._service.cancel_job(self.job)

    def summary(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "job": self.job,
            "model": self.model,
            "content": self.content,
            "reasoning": self.reasoning or None,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "timings": self.timings,
        }

    def _pieces(self) -> Iterator[Piece]:
        if self.job is None:
            headers = {"x-stream-grace": f"{GRACE}s"}
            opened: AbstractContextManager[httpx.Response] = self._service.stream(
                "POST", "/v1/chat/completions", json=self._asked, headers=headers, extensions={"trace": self._goes_out}
            )
        else:
            opened = self._service.job_events(self.job, self._last)
        with opened as reply:
            self.job = reply.headers.get("x-job-id", self.job)
            if reply.status_code == 204:
                return
            for place, data in frames(reply.iter_lines(), self._waiting):
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    # Without a place it ends the stream only, and the job may go on.
                    raise (AnswerFailed if place else ServiceAway)(str(chunk["error"]["message"]))
                self._last = place or self._last
                yield from self._read(chunk)
        raise ServiceAway("The answer broke off.")

    def _waiting(self, comment: str) -> None:
        """Told once each time that the place or the reason changes; how long it will be changes with every look."""
        parts = comment.split(", ")
        words = ", ".join(part for part in parts if not part.startswith("about "))
        if parts[0].startswith("position ") and words != self._waits:
            self._waits = words
            self._tell(f"Waiting: {', '.join(part for part in parts if part != 'about 0 s')}.")

    def _goes_out(self, step: str, _: dict[str, Any]) -> None:
        if step.endswith(".send_request_headers.started"):
            self.sent = time.perf_counter()

    def _read(self, chunk: dict[str, Any]) -> Iterator[Piece]:
        self.model = chunk.get("model", self.model)
        self.usage = chunk.get("usage") or self.usage
        self.timings = chunk.get("timings") or self.timings
        for choice in chunk["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                self.reasoning += thought
                yield Piece(thought, True)
            if text := delta.get("content"):
                self.content += text
                yield Piece(text, False)


def frames(lines: Iterable[str], comment: Callable[[str], None] = lambda _: None) -> Iterator[tuple[str, str]]:
    """The server-sent events in these lines: the id of each, empty where it has none, and its data. `comment` is given what
    stands between them, with which a stream says what it waits for."""
    place = ""
    for line in lines:
        if line.startswith(": "):
            comment(line[2:])
        name, _, value = line.partition(": ")
        if name == "id":
            place = value
        elif name == "data":
            yield place, value
            place = ""
