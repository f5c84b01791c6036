"""Messages as they happen: one subscription for a whole process, fanned out in memory."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import hiredis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection

from tasks.connection import UNREACHABLE, Outages

log = logging.getLogger("rockchipllama.feed")

SILENCE = 15.0
"""Seconds without a message after which the connection is probed; twice that, and it is made anew."""
SHORTEST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
"""Seconds before it is made anew; each try in vain doubles the pause."""


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Subscription:
    """The messages of one channel, in order. A `None` among them says that some may have been missed before it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()  # to ask for it asks the kernel, and `wait` is called for every token
        self.confirmed: asyncio.Future[None] = self._loop.create_future()
        """Done once Redis confirmed the subscription: what is published from then on arrives here."""
        self._messages: deque[bytes | None] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, message: bytes | None) -> None:
        """Hand over a message, and wake the reader."""
        self._messages.append(message)
        if self._waiter is not None:
            _wake(self._waiter)

    def take(self) -> Iterator[bytes | None]:
        """The messages that have come, oldest first."""
        while self._messages:
            yield self._messages.popleft()

    async def wait(self, seconds: float) -> bool:
        """Wait until a message is there; False when none came in time. One waiter at a time."""
        if self._messages:
            return True
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        return bool(self._messages)


class LiveFeed:
    """One pub/sub connection for a process. Reconnects by itself for as long as it is open."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.connected = math.inf
        """When the connection was made, in monotonic seconds; infinite while there is none."""
        self._client = client
        self._channels: dict[bytes, list[Subscription]] = {}
        self._live: set[bytes] = set()
        self._wire: _Wire | None = None
        self._pause = SHORTEST_PAUSE
        self._redis = Outages(log, "the live feed")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LiveFeed:
        self._task = asyncio.create_task(self._run(), name="live-feed")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        """The messages of `channel` from the moment its `confirmed` is done."""
        subscription = Subscription()
        name = channel.encode()
        others = self._channels.setdefault(name, [])
        others.append(subscription)
        try:
            if name in self._live:
                subscription.confirmed.set_result(None)
            elif len(others) == 1:
                self._say("SUBSCRIBE", name)
            yield subscription
        finally:
            others.remove(subscription)
            if not others:
                del self._channels[name]
                self._live.discard(name)
                self._say("UNSUBSCRIBE", name)

    def hears(self, channel: str) -> bool:
        """Whether what is published on that channel from now on arrives: it is subscribed to on the connection there is."""
        return channel.encode() in self._live

    def _say(self, verb: str, name: bytes) -> None:
        # While there is no connection there is nothing to say: a new one begins with everything that is wanted.
        if self._wire is not None:
            self._wire.say(verb, name)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except UNREACHABLE as error:
                self._redis.lost(error)
            except Exception:
                # A defect of ours; but without the feed every answer of this process would hang.
                log.exception("the live feed broke, reconnecting")
            await asyncio.sleep(self._pause)
            self._pause = min(LONGEST_PAUSE, self._pause * 2)

    async def _listen(self) -> None:
        """Ends only by raising, with the connection."""
        connection = self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()
            self._wire = _Wire(connection, self._hear)
            self._redis.found()
            self.connected = time.monotonic()
            for name in self._channels:
                self._wire.say("SUBSCRIBE", name)
            self._pause = SHORTEST_PAUSE
            await self._wire.until_lost()
        finally:
            self._wire = None
            self.connected = math.inf
            self._live.clear()
            await connection.disconnect(nowait=True)

    def _hear(self, message: list[bytes]) -> None:
        kind, name = message[0], message[1]
        if kind == b"message":
            for subscription in self._channels.get(name, ()):
                subscription.put(message[2])
        elif kind == b"subscribe" and name in self._channels:
            self._live.add(name)
            for subscription in self._channels[name]:
                if subscription.confirmed.done():
                    subscription.put(None)  # subscribed anew after a loss
                else:
                    subscription.confirmed.set_result(None)


class _Wire(asyncio.Protocol):
    """A connection that the client has made (with its address, TLS and password), read without the client's streams: each
    token of each stream passes here, and one callback costs a third of what their task, lock and time-out do."""

    def __init__(self, connection: AbstractConnection, hear: Callable[[list[bytes]], None]) -> None:
        self._hear = hear
        self._replies = hiredis.Reader()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = False
        assert connection._writer is not None
        self._transport = connection._writer.transport
        self._transport.set_protocol(self)

    def say(self, verb: str, name: bytes) -> None:
        """Send a command; its reply is heard like any other message. On a connection that closes it is lost: whoever makes
        the next one says again what is wanted."""
        if self._transport.is_closing():
            self._lose(ConnectionError("the connection is closing"))
            return
        self._transport.write(hiredis.pack_command((verb, name)))  # type: ignore[arg-type]  # its stub takes one word

    async def until_lost(self) -> None:
        """Probe the connection when it is silent. Ends only by raising one of `UNREACHABLE`."""
        probed = False
        while True:
            self._heard = False
            await asyncio.wait({self._lost}, timeout=SILENCE)
            if self._lost.done():
                return self._lost.result()
            if self._heard:
                probed = False
            elif probed:
                raise ConnectionError("it does not answer a probe")
            else:
                probed = True
                self.say("PING", b"feed")

    def data_received(self, data: bytes) -> None:
        """Hand on every message in it."""
        self._heard = True
        self._replies.feed(data)
        while (message := self._replies.gets()) is not False:
            if isinstance(message, list):
                self._hear(message)
            elif isinstance(message, hiredis.HiredisError):
                self._lose(ConnectionError(f"it answered {message!r}"))
            # What else comes is the answer to a probe while nothing is subscribed.

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end is gone."""
        self._lose(ConnectionError(str(exc or "the connection was closed")))

    def _lose(self, error: ConnectionError) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # seen: on the way out nobody waits for it any more
