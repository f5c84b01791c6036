"""Clients that know what they must be answered, and note what they were."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.stack import LIMIT

MODEL = "echo"

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For `httpx`, which else reads all certificates of the machine for each request: more work than the service has with it."""


def words(name: object, size: int) -> str:
    """A text nobody else has: named and numbered, so that it shows where something was lost, repeated or foreign."""
    return "".join(f"{name}.{place}:{'aß世🦙'[place % 4]} " for place in range(size))


@dataclass
class Answer:
    """What one client asked and got."""

    asked: str
    got: str = ""
    job: str = ""
    end: str = "broken"
    """`stop`, the code of an error, `left`, `broken` (the connection ended before the answer did) or `silent`."""
    faults: list[str] = field(default_factory=list)

    def take(self, chunk: dict[str, Any]) -> None:
        """The next chunk of a stream."""
        if "error" in chunk:
            self.end = chunk["error"]["code"]
            return
        for choice in chunk["choices"]:
            if self.end == "stop":
                self.faults.append("something came behind its end")
            self.got += choice["delta"].get("content") or ""
            self.end = choice["finish_reason"] or self.end
        if not self.asked.startswith(self.got):
            self.faults.append(f"{self.got[-60:]!r} is not its own, or not what follows")

    def wrong(self) -> list[str]:
        """What is wrong with it, whatever happened to the service meanwhile."""
        faults = list(dict.fromkeys(self.faults))
        if self.end == "stop" and self.got != self.asked:
            faults.append(f"finished with {len(self.got)} of {len(self.asked)} characters")
        return [f"{self.job or 'refused'}: {fault}" for fault in faults]


def _refused(answer: Answer, reply: httpx.Response) -> Answer:
    answer.job = reply.headers.get("x-job-id", answer.job)
    answer.end = str(json.loads(reply.read())["error"]["code"])
    return answer


def _body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]} | fields


def _frames(reply: httpx.Response) -> Iterator[tuple[str, str]]:
    """Id and data of each frame."""
    identity = ""
    for line in reply.iter_lines():
        if line.startswith("id: "):
            identity = line[4:]
        elif line.startswith("data: "):
            yield identity, line[6:]


def whole(url: str, text: str) -> Answer:
    """Waits for the answer in one piece."""
    answer = Answer(text)
    try:
        reply = httpx.post(f"{url}/v1/chat/completions", json=_body(text), timeout=LIMIT, verify=NO_TLS)
    except httpx.ReadTimeout:
        answer.end = "silent"
        return answer
    except httpx.TransportError:
        return answer
    if reply.status_code != 200:
        return _refused(answer, reply)
    answer.job = reply.headers["x-job-id"]
    [choice] = reply.json()["choices"]
    answer.take({"choices": [{"delta": choice["message"], "finish_reason": choice["finish_reason"]}]})
    return answer


def streaming(
    url: str,
    text: str,
    *,
    leaves_at: int | None = None,
    pause: float = 0.0,
    at: int = 0,
    then: Callable[[Answer], None] = lambda _: None,
) -> Answer:
    """Reads a stream: to its end or to so many characters, with so many seconds between frames; once it has read `at`
    characters it calls `then`."""
    answer, called = Answer(text), False
    try:
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=_body(text, stream=True), timeout=LIMIT, verify=NO_TLS
        ) as reply:
            if reply.status_code != 200:
                return _refused(answer, reply)
            answer.job = reply.headers["x-job-id"]
            for _, data in _frames(reply):
                if data == "[DONE]":
                    break
                answer.take(json.loads(data))
                if leaves_at is not None and len(answer.got) >= leaves_at and answer.end == "broken":
                    answer.end = "left"
                    break
                if not called and len(answer.got) >= max(at, 1):
                    called = True
                    then(answer)
                time.sleep(pause)
    except httpx.ReadTimeout:
        answer.end = "silent"
    except httpx.TransportError:
        pass
    return answer


def returning(
    url: str,
    text: str,
    *,
    leaves_at: int | None = None,
    at: int = 0,
    then: Callable[[Answer], None] = lambda _: None,
) -> Answer:
    """Reads a stream, and comes back to it whenever the connection ends before the answer does; and once by its own wish."""
    answer, last, called, left = Answer(text), "", False, False
    deadline = time.monotonic() + 2 * LIMIT
    request = {"method": "POST", "url": f"{url}/v1/chat/completions", "json": _body(text, stream=True)}
    headers = {"x-stream-grace": "60s"}
    while answer.end in ("broken", "queue_unavailable", "server_stopping") and time.monotonic() < deadline:
        answer.end = "broken"
        try:
            with httpx.stream(**request, headers=headers, timeout=LIMIT, verify=NO_TLS) as reply:  # type: ignore[arg-type]
                if reply.status_code >= 400:
                    answer = _refused(answer, reply) if not answer.job else answer
                    if not answer.job:
                        return answer
                    if reply.status_code == 404:
                        return _refused(answer, reply)
                    time.sleep(0.2)
                    continue
                answer.job = reply.headers["x-job-id"]
                for identity, data in _frames(reply):
                    if data == "[DONE]":
                        break
                    answer.take(json.loads(data))
                    last = identity or last
                    if leaves_at is not None and len(answer.got) >= leaves_at and not left:
                        left = True
                        break
                    if not called and len(answer.got) >= max(at, 1):
                        called = True
                        then(answer)
        except httpx.ReadTimeout:
            answer.end = "silent"
        except httpx.TransportError:
            time.sleep(0.2)
        if not answer.job:
            return answer
        request = {"method": "GET", "url": f"{url}/v1/jobs/{answer.job}/events"}
        headers = {"last-event-id": last} if last else {}
    return answer
