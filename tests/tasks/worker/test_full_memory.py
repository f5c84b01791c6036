"""The whole service on a Redis whose memory is full: what was accepted goes on, what is new is refused, nothing dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tasks import keys
from tasks.queue import send
from tests.stack import LIMIT, Stack, eventually

LONG = "abcdefgh" * 40


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack({"steady": {"tokens_per_second": 100}}) as stack:
        yield stack


@pytest.fixture
def ask(stack: Stack) -> Iterator[Callable[[str], Future[httpx.Response]]]:
    """Sends a chat, and does not wait for its answer."""
    with ThreadPoolExecutor() as threads:

        def send(text: str) -> Future[httpx.Response]:
            body = {"model": "steady", "messages": [{"role": "user", "content": text}]}
            return threads.submit(httpx.post, f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT)

        yield send


def answer(asked: Future[httpx.Response]) -> str:
    reply = asked.result(LIMIT)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def breath(stack: Stack) -> dict[str, Any]:
    """The newest breath of the worker, with its time."""
    kept = stack.redis.hget(keys.PRESENCE, "steady@test-board")
    if kept is None:
        return {}
    at, _, payload = kept.partition(b":")
    return {"at": int(at), **json.loads(payload)}


def running(stack: Stack) -> str:
    [job] = eventually(lambda: stack.redis.zrange(keys.running("steady"), 0, -1), what="a running job")
    eventually(lambda: stack.redis.hget(keys.job(job.decode()), "phase") == b"decode", what="its answer")
    return str(job.decode())


def test_a_service_whose_memory_is_full(stack: Stack, ask: Callable[[str], Future[httpx.Response]]) -> None:
    """A running answer ends whole and is followed by what waits; both can be cancelled; the worker keeps its model."""
    assert answer(ask("warm")) == "warm"
    child = stack.child("steady").pid
    stack.redis.hset(keys.GATES, "steady", "paused")  # the first is not at its end before the second has come
    first = ask(LONG)
    eventually(lambda: stack.redis.zcard(keys.waiting("steady")) == 1, what="a job that waits")
    second = ask("cancel me " * 400)
    eventually(lambda: stack.redis.zcard(keys.waiting("steady")) == 2, what="another one")
    stack.redis.hdel(keys.GATES, "steady")
    send(stack.redis, "steady")
    running(stack)
    stack.redis.config_set("maxmemory", 1)
    refused = ask("new").result(LIMIT)
    assert refused.status_code == 503
    assert "no memory left" in refused.json()["error"]["message"]

    assert answer(first) == LONG
    job = running(stack)
    assert httpx.post(f"{stack.url}/v1/jobs/{job}/cancel", timeout=LIMIT).json()["state"] == "cancelled"
    assert second.result(LIMIT).status_code >= 400
    # The parent is given its next call, and Redis has no room to note that it took one.
    eventually(lambda: breath(stack).get("answered"), what="a child that is back at its parent")
    send(stack.redis, "steady")
    eventually(lambda: "the worker's parent lost Redis" in stack.log("board"), what="the parent's complaint")
    begun = breath(stack)["at"]
    eventually(lambda: breath(stack).get("at", 0) > begun + 3000, what="more breaths")
    assert breath(stack)["state"] == "loaded"
    # It says that once, and tries again now and then, not twenty times a second.
    ours = ("celery.", "kombu.", "the worker's parent")
    told = [
        line for line in stack.log("board").splitlines() if any(word in line for word in ours) and " File " not in line
    ]
    assert len(told) <= 4, told

    stack.redis.config_set("maxmemory", "1gb")
    assert answer(ask("back")) == "back"
    assert stack.log("board").count("the worker's parent has Redis back after") == 1
    assert stack.child("steady").pid == child
