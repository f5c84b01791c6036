"""Connections to Redis: their spellings, what a failed one is called, and that a cancelled command is cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis
import redis.asyncio

from tasks.connection import celery_url, connect_async, unavailable_as_refusal
from tasks.errors import QueueUnavailable
from tests.stack import LIMIT

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("url", "celerys"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://user:word@host/3", "rediss://user:word@host/3"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock?virtual_host=0"),
        ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
    ],
)
def test_celery_is_told_the_same_redis(url: str, celerys: str) -> None:
    """In its own spelling."""
    assert celery_url(url) == celerys


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("x"),
        redis.TimeoutError("x"),
        redis.BusyLoadingError("x"),
        redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
        redis.ResponseError("OOM command not allowed"),
        redis.ReadOnlyError("READONLY x"),
        redis.ResponseError("MISCONF x"),
        ConnectionResetError("x"),
        TimeoutError(),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
def test_a_redis_that_cannot_take_a_job_is_a_refusal(error: Exception) -> None:
    """Away, loading, full or read-only: the client may try again."""
    with pytest.raises(QueueUnavailable) as refused, unavailable_as_refusal():
        raise error
    assert refused.value.retry_after > 0


def test_a_defect_is_no_refusal() -> None:
    """Trying again would not help."""
    with pytest.raises(redis.ResponseError), unavailable_as_refusal():
        raise redis.ResponseError("WRONGTYPE x")
    with pytest.raises(ZeroDivisionError), unavailable_as_refusal():
        raise ZeroDivisionError


async def test_a_redis_that_is_not_there(tmp_path: Path) -> None:
    """Is told by the kind of error that says so."""
    with pytest.raises(QueueUnavailable), unavailable_as_refusal():
        await connect_async(f"unix://{tmp_path}/nothing.sock").ping()


async def test_a_cancelled_command_is_cancelled(aclient: redis.asyncio.Redis, client: redis.Redis) -> None:
    """Whatever the moment, a task that was cancelled in a command does not go on; and the next command gets its own reply."""
    client.set("known", "known")

    async def ask() -> None:
        while True:
            await aclient.get("unknown")

    for moment in range(200):
        task = asyncio.create_task(ask())
        for _ in range(moment % 40):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=LIMIT)
        assert done and task.cancelled()
        assert await aclient.get("known") == b"known"
