"""Connections to Redis, and what a failed one is called."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.asyncio.sentinel
import redis.connection
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import AuthenticationError, MasterDownError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tasks import sentinel
from tasks.errors import QueueUnavailable


class TakesNothing(ResponseError):
    """Raised when Redis answers but takes no command now: its disk failed, its replicas are away, a script holds it up."""


UNREACHABLE = (
    *(RedisConnectionError, RedisTimeoutError, OSError),
    *(OutOfMemoryError, ReadOnlyError, MasterDownError, TakesNothing),
)
"""What a client raises while Redis cannot serve, and trying again later helps: it is away, restarting, loading its file,
full, read-only, or takes nothing for another reason."""

OUTAGE_PATIENCE = 30.0
"""Seconds Redis may be away before an answer in progress is given up. A worker that gave up earlier than the API would
lose answers whose clients still wait; one that went on for longer would write for nobody."""

SOCKET_TIMEOUT = 5.0
"""Seconds one command may take before the connection counts as dead."""

MOST_CONNECTIONS = 16
"""Connections of one event loop. A thousand clients that come at once wait a moment for one instead of being refused."""


class _Retry(Retry):
    """Tries again in the outermost of a client's calls alone. Those that it makes in turn, to connect and to ask after the
    connection's health, would else each do so in each of its tries, and an outage be noticed after a minute or more."""

    def call_with_retry(self, do: Callable[[], Any], *args: Any, **options: Any) -> Any:
        def once() -> Any:
            retries, self._retries = self._retries, 0
            try:
                return do()
            finally:
                self._retries = retries

        return super().call_with_retry(once, *args, **options)


class _AsyncRetry(AsyncRetry):
    """The same for an event loop."""

    async def call_with_retry(self, do: Callable[[], Awaitable[Any]], *args: Any, **options: Any) -> Any:
        async def once() -> Any:
            retries, self._retries = self._retries, 0
            try:
                return await do()
            finally:
                self._retries = retries

        return await super().call_with_retry(once, *args, **options)


def connect(url: str, *, timeout: float = SOCKET_TIMEOUT, retries: int = 3) -> redis.Redis:
    """A client for threads. Each command is tried again so often, over about half a second and the `timeout` of each try, in
    seconds."""
    timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    options: dict[str, Any] = {
        **timeouts,
        "health_check_interval": 30,
        "protocol": 2,
        "parser_class": _Parser,
        "retry": _Retry(ExponentialBackoff(cap=0.25, base=0.05), retries),
    }
    if (named := sentinel.named_by(url)) is None:
        return redis.Redis.from_url(url, **options)
    asked: Any = redis.sentinel.Sentinel(named.hosts, sentinel_kwargs=sentinel_options(named, timeout))  # type: ignore[no-untyped-call]
    return cast(redis.Redis, asked.master_for(named.master, **sentinel.client_options(named), **options))


def sentinel_options(named: sentinel.Sentinels, timeout: float = SOCKET_TIMEOUT) -> dict[str, Any]:
    """How Sentinels are asked: each once, since the next one knows as much."""
    timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    return {**timeouts, **named.access, "retry": Retry(NoBackoff(), 0)}


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for an event loop. Each command is tried again twice, then it is the caller's to say 503."""
    timeouts = {"socket_timeout": SOCKET_TIMEOUT, "socket_connect_timeout": SOCKET_TIMEOUT}
    options: dict[str, Any] = {
        **timeouts,
        "retry": _AsyncRetry(ExponentialBackoff(cap=0.1, base=0.02), 2),
        "protocol": 2,
        "parser_class": _AsyncParser,
    }
    pool: redis.asyncio.ConnectionPool
    if (named := sentinel.named_by(url)) is None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=MOST_CONNECTIONS, timeout=SOCKET_TIMEOUT, **options
        )
    else:
        asked: Any = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            named.hosts, sentinel_kwargs={**sentinel_options(named), "retry": AsyncRetry(NoBackoff(), 0)}
        )
        pool = asked.master_for(named.master, **sentinel.client_options(named), **options).connection_pool
    # The URL's scheme has chosen the kind of connection.
    pool.connection_class = type("Swift", (_Swift, pool.connection_class), {})
    return redis.asyncio.Redis.from_pool(pool)


# The client itself knows no class for these answers.
_TAKES_NOTHING = dict.fromkeys(("MISCONF", "NOREPLICAS", "BUSY"), TakesNothing)


class _Parser(redis.connection.DefaultParser):  # type: ignore[misc, valid-type]  # which one depends on what is installed
    EXCEPTION_CLASSES: ClassVar = {**redis.connection.DefaultParser.EXCEPTION_CLASSES, **_TAKES_NOTHING}


class _AsyncParser(redis.asyncio.connection.DefaultParser):  # type: ignore[misc, valid-type]
    EXCEPTION_CLASSES: ClassVar = {**redis.asyncio.connection.DefaultParser.EXCEPTION_CLASSES, **_TAKES_NOTHING}


class _Swift:
    """Packs a command in C, as the client for threads does and this one does not: an accepted job has some forty words.

    Sends it at once, with a timer beside it. Its base goes through `asyncio.wait_for`, by which a command leaves a round of
    the loop later, in a task of its own, and which in Python 3.11 swallows a cancellation that comes in that moment: whoever
    was cancelled (a client left, a time-out passed) would go on as if nothing had been."""

    _packer = HiredisRespSerializer()

    def pack_command(self, *words: Any) -> list[bytes]:
        return self._packer.pack(*words)  # type: ignore[no-any-return]

    async def send_packed_command(self: Any, command: list[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command(command)
        except BaseException as error:
            await self.disconnect(nowait=True)  # a reply may come that nobody reads
            if isinstance(error, OSError):  # a time-out is one as well
                raise RedisConnectionError(f"A command could not be sent: {error!r}") from error
            raise


@contextmanager
def unavailable_as_refusal() -> Iterator[None]:
    """Turn what a client raises while Redis cannot serve into `QueueUnavailable`."""
    try:
        yield
    except OutOfMemoryError as error:
        raise QueueUnavailable(str(error), problem="has no memory left") from error
    except (ReadOnlyError, TakesNothing) as error:
        raise QueueUnavailable(str(error), problem="takes nothing in at the moment") from error
    except UNREACHABLE as error:
        raise QueueUnavailable(str(error) or type(error).__name__) from error


class Outages:
    """Says once that Redis is away and once that it is back, however often somebody tries meanwhile."""

    def __init__(self, log: logging.Logger, who: str) -> None:
        self._log = log
        self._who = who
        self._since: float | None = None
        self._shut_out = False

    def lost(self, error: object) -> None:
        """It could not be reached, or lets nobody in by this name any more, which is said even where it was away before."""
        shut_out = isinstance(error, AuthenticationError)
        if self._since is None:
            self._since = time.monotonic()
        elif self._shut_out or not shut_out:
            return
        self._shut_out = shut_out
        if shut_out:
            why = "its token was revoked, or the password is another one"
            self._log.warning("%s is not let in by Redis: %s. It goes on trying: %s", self._who, why, error)
        else:
            self._log.warning("%s lost Redis, and goes on trying: %s", self._who, error)

    def found(self) -> None:
        """It answered."""
        if self._since is not None:
            self._log.warning("%s has Redis back after %.1f s", self._who, time.monotonic() - self._since)
            self._since = None
            self._shut_out = False


def text(value: Any) -> str:
    """A reply as text; Redis answers in bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
