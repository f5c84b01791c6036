"""Connections to Redis: their spellings, what a failed one is called, and that a cancelled command is cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis
import redis.asyncio
from celery.worker.consumer import consumer as celery_consumer

from tasks.connection import UNREACHABLE, Outages, TakesNothing, connect, connect_async, unavailable_as_refusal
from tasks.errors import QueueUnavailable
from tasks.worker.consumer import InWords
from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("x"),
        redis.TimeoutError("x"),
        redis.BusyLoadingError("x"),
        redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
        redis.ReadOnlyError("x"),
        TakesNothing("MISCONF x"),
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


def test_who_is_shut_out_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """Once, also where Redis was lost before; a worker's Celery says the same in two lines at each try, and not in ours."""
    outages = Outages(logging.getLogger("test"), "the board")
    refused = redis.AuthenticationError("invalid username-password pair or user is disabled.")
    celery = logging.getLogger(celery_consumer.__name__)
    celery.addFilter(in_words := InWords(outages))
    try:
        for error in (redis.ConnectionError("gone"), refused, refused):
            celery.error(celery_consumer.CONNECTION_ERROR, "redis://", error, "Trying again... (1/None)")  # type: ignore[attr-defined]
    finally:
        celery.removeFilter(in_words)
    lost, shut_out = [record.getMessage() for record in caplog.records]
    assert lost.startswith("the board lost Redis")
    assert shut_out.startswith("the board is not let in by Redis: its token was revoked")


async def test_a_redis_that_is_not_there(tmp_path: Path) -> None:
    """Is told by the kind of error that says so."""
    with pytest.raises(QueueUnavailable) as refused, unavailable_as_refusal():
        await connect_async(f"unix://{tmp_path}/nothing.sock").ping()
    assert "/" not in str(refused.value)
    assert str(tmp_path) in refused.value.detail


@pytest.fixture(scope="module")
def troubled() -> Iterator[Stack]:
    """A Valkey whose snapshots cannot be written: a folder has their name."""
    stack = Stack({})
    (stack.folder / "dump.rdb").mkdir()
    stack.start_valkey()
    yield stack
    stack.stop()


@contextmanager
def full(stack: Stack) -> Iterator[None]:
    stack.redis.config_set("maxmemory", 1)
    yield
    stack.redis.config_set("maxmemory", "1gb")


@contextmanager
def without_replicas(stack: Stack) -> Iterator[None]:
    stack.redis.config_set("min-replicas-to-write", 1)
    yield
    stack.redis.config_set("min-replicas-to-write", 0)


@contextmanager
def read_only(stack: Stack) -> Iterator[None]:
    stack.redis.replicaof("127.0.0.1", 1)
    yield
    stack.redis.replicaof("NO", "ONE")


@contextmanager
def with_a_broken_disk(stack: Stack) -> Iterator[None]:
    client = stack.redis
    client.config_set("save", "3600 1")
    client.bgsave()
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="a snapshot that failed")
    yield
    client.config_set("save", "")


@contextmanager
def held_up(stack: Stack) -> Iterator[None]:
    client = stack.redis
    client.config_set("busy-reply-threshold", 1)

    def loop() -> None:
        with pytest.raises(redis.ResponseError):
            stack.redis.eval("while true do end", 0)

    looping = threading.Thread(target=loop)
    looping.start()

    def busy() -> bool:
        try:
            return not client.ping()
        except redis.ResponseError:
            return True

    eventually(busy, what="a script that holds Redis up")
    yield
    client.script_kill()
    looping.join(LIMIT)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (full, "no memory left"),
        (without_replicas, "takes nothing"),
        (read_only, "takes nothing"),
        (with_a_broken_disk, "takes nothing"),
        (held_up, "takes nothing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_redis_that_answers_but_cannot_serve_counts_as_away(
    troubled: Stack, trouble: Callable[[Stack], AbstractContextManager[None]], says: str
) -> None:
    """For threads and for event loops; the client's sentence names no path, and afterwards all is well."""
    client, aclient = connect(troubled.redis_url), connect_async(troubled.redis_url)
    with trouble(troubled):
        with pytest.raises(UNREACHABLE):
            client.set("a", 1)
        with pytest.raises(QueueUnavailable, match=says) as refused, unavailable_as_refusal():
            await aclient.set("a", 1)
        assert "/" not in str(refused.value)
    assert client.set("a", 1)
    assert await aclient.set("a", 1)
    await aclient.aclose()


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
