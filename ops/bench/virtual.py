"""A private Valkey whose service's clock shows a time that is told: the queue's own steps, in a time of the caller's.

All times of the queue are by the service's clock (`tasks/clock.py`), which stands still where Redis' own has jumped. Before each
command it is said to have been seen last at the virtual time, from which Redis' clock is decades away: so that time is what the
queue's steps go by, to the millisecond, however long the machine takes. No rule of the queue is written a second time for this.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import redis
import redis.asyncio

from ops import environment
from ops.up import store
from tasks import keys

T = TypeVar("T")

START = 30.0
"""Seconds the server may take to answer."""


class VirtualTime:
    """Milliseconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def standing(self) -> str:
        """What lets the service's clock stand at it."""
        return f"0:{self.now:.0f}"


class VirtualRedis(redis.Redis):
    """A client by whose commands it is `clock.now`."""

    clock: VirtualTime

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """The command, at that time."""
        pipe = self.pipeline(transaction=False)
        pipe.set(keys.CLOCK, self.clock.standing())
        pipe.execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return pipe.execute()[1]


class AsyncVirtualRedis(redis.asyncio.Redis):
    """The same for an event loop."""

    clock: VirtualTime

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """The command, at that time."""
        pipe = self.pipeline(transaction=False)
        pipe.set(keys.CLOCK, self.clock.standing())
        pipe.execute_command(*args, **options)
        return (await pipe.execute())[1]


class VirtualQueue:
    """The service's queue in virtual time: `store` for who accepts, `client` for who serves. Not to be used once it is left."""

    def __init__(self, socket: Path) -> None:
        self.clock = VirtualTime()
        self.client = VirtualRedis(unix_socket_path=str(socket))
        self.client.clock = self.clock
        self._runner = asyncio.Runner()
        self.async_client = AsyncVirtualRedis(unix_socket_path=str(socket))
        self.async_client.clock = self.clock

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What comes of it."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Let go of the connections."""
        self._runner.run(self.async_client.aclose())
        self._runner.close()
        self.client.close()


@contextmanager
def virtual_queue() -> Iterator[VirtualQueue]:
    """A queue on a Valkey of its own, in memory only, gone when the block ends. Raises `UpError` and `RuntimeError`."""
    with tempfile.TemporaryDirectory(prefix="rockchipllama-fleet-") as folder:
        socket = Path(folder) / "valkey.sock"
        server = subprocess.Popen(
            # The guard ends it when the pipe closes, so a run that is killed hard leaves no server.
            [
                *("/bin/sh", "-c", store.GUARD, "fleet-guard", str(store.server_binary())),
                *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
                *("--save", "", "--appendonly", "no", "--dir", folder),
            ],
            env=environment.for_child({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert server.stdin is not None
        try:
            queue = VirtualQueue(socket)
            _wait(server, socket)
            try:
                yield queue
            finally:
                queue.close()
        finally:
            server.stdin.close()
            server.wait()


def _wait(server: subprocess.Popen[bytes], socket: Path) -> None:
    probe = redis.Redis(unix_socket_path=str(socket))
    deadline = time.monotonic() + START
    while True:
        try:
            if probe.ping():
                probe.close()
                return
        except redis.exceptions.ConnectionError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("The Valkey of the simulation does not start.") from error
            time.sleep(0.02)
