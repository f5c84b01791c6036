"""Connections to Redis, and what a failed one is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tasks.errors import QueueUnavailable

UNREACHABLE = (RedisConnectionError, RedisTimeoutError, OSError)
"""What a client raises when Redis is away, restarting, or loading its file."""

SOCKET_TIMEOUT = 5.0
"""Seconds one command may take before the connection counts as dead."""

MOST_CONNECTIONS = 16
"""Connections of one event loop. A thousand clients that come at once wait a moment for one instead of being refused."""


def connect(url: str) -> redis.Redis:
    """A client for threads. Each command is tried three times over about half a second."""
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=SOCKET_TIMEOUT,
        health_check_interval=30,
        protocol=2,
        retry=Retry(ExponentialBackoff(cap=0.25, base=0.05), 3),
    )


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for an event loop. A dropped connection is tried once more, then it is the caller's to say 503."""
    from redis.asyncio.retry import Retry as AsyncRetry

    return redis.asyncio.Redis.from_pool(
        redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MOST_CONNECTIONS,
            timeout=SOCKET_TIMEOUT,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
            retry=AsyncRetry(ExponentialBackoff(cap=0.1, base=0.02), 2),
            protocol=2,
        )
    )


def celery_url(url: str) -> str:
    """The same Redis in the spelling of Celery's transport, which has its own for Unix sockets."""
    if url.startswith("unix://"):
        path, _, query = url.removeprefix("unix://").partition("?")
        database = next((part[3:] for part in query.split("&") if part.startswith("db=")), "0")
        return f"redis+socket://{path}?virtual_host={database}"
    return url


@contextmanager
def unavailable_as_refusal() -> Iterator[None]:
    """Turn what a client raises while Redis is away, read-only or full into `QueueUnavailable`."""
    try:
        yield
    except UNREACHABLE as error:
        raise QueueUnavailable(str(error) or type(error).__name__) from error
    except ResponseError as error:
        text = str(error)
        if "OOM" in text or "MISCONF" in text or "READONLY" in text or "LOADING" in text:
            raise QueueUnavailable(text) from error
        raise


def text(value: Any) -> str:
    """A reply as text; Redis answers in bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
