"""Many clients at once, in a process of their own so that their memory is not the service's.

`python -m ops.bench.crowd` reads its plan from the first line of standard input, writes `{"open": N}` once every client has
its 200, and `{"whole": N, "broken": {why: count}}` when the last answer has ended. The end of its input ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ops import environment

CONNECTING = 64
"""Clients that may be connecting at one time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`count` clients send `requests` in turn to `port`; with each stands the text of a whole answer."""

    port: int
    count: int
    requests: Sequence[tuple[str, str]]


class Client(asyncio.Protocol):
    """One streamed answer. Keeps what it received, since that tells whether it was whole."""

    def __init__(self, request: bytes, expected: str) -> None:
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._expected = expected
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the answer's beginning and end."""
        self._received += data
        if not self.accepted.done() and b"\r\n\r\n" in self._received:
            self.accepted.set_result(None)
        if self._received.endswith(b"0\r\n\r\n") or not self._received.startswith(b"HTTP/1.1 200"):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        for future in (self.accepted, self.ended):
            if not future.done():
                future.set_result(None)

    def verdict(self) -> str:
        """Empty when the answer was whole, else what was wrong with it."""
        head, _, body = bytes(self._received).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return (
                " ".join((head.split(b"\r\n")[0] + b" " + body[:200]).decode(errors="replace").split()) or "no answer"
            )
        frames = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
        if frames[-1:] != [b"[DONE]"]:
            return "broke off"
        choices = [choice for frame in frames[:-1] for choice in json.loads(frame)["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return "" if text == self._expected else "another text"


async def run(plan: Plan) -> None:
    """Do what the plan says, and report."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(CONNECTING)

    async def connect(number: int) -> Client:
        async with gate:
            request, expected = plan.requests[number % len(plan.requests)]
            made = Client(request.encode(), expected)
            _, client = await loop.create_connection(lambda: made, "127.0.0.1", plan.port)
            return client

    clients = await asyncio.gather(*(connect(number) for number in range(plan.count)))
    await asyncio.gather(*(client.accepted for client in clients))
    say({"open": sum(not client.ended.done() for client in clients)})
    await asyncio.gather(*(client.ended for client in clients))
    verdicts = Counter(client.verdict() for client in clients)
    say({"whole": verdicts.pop("", 0), "broken": dict(verdicts)})


def say(message: dict[str, Any]) -> None:
    """One line to whoever started this process."""
    print(json.dumps(message), flush=True)


class Crowd:
    """The clients, as their owner holds them. Leaving the context makes them all leave at once."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ops.bench.crowd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment.for_child({}),
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._input.write(json.dumps(asdict(plan)).encode() + b"\n")
        self._input.flush()

    @property
    def pid(self) -> int:
        """Their process."""
        return self._process.pid

    def heard(self) -> dict[str, Any]:
        """Its next message. Raises `RuntimeError` when there is none."""
        line = self._output.readline()
        if not line:
            raise RuntimeError("the crowd of clients ended early")
        message: dict[str, Any] = json.loads(line)
        return message

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._input.close()
        self._output.close()


def main() -> None:
    """Run the plan on standard input."""
    plan = Plan(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_leave_with_owner, daemon=True).start()
    asyncio.run(run(plan))


def _leave_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
