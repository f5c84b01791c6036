"""Nothing lost, nothing foreign: hundreds of streams at once, with clients that leave at random moments."""

from __future__ import annotations

import fnmatch
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tasks import keys
from tasks.scripts import CANCEL
from tasks.store import CANCELLED
from tests.e2e.test_cancellation import begin, leave, until_state, view
from tests.record import read_pieces
from tests.stack import LIMIT, Stack, eventually

STREAMS = 500
CLIENTS = 32


@pytest.fixture(scope="module")
def busy_stack() -> Iterator[Stack]:
    """A fast echo that hesitates at random, and one slow enough to count its tokens."""
    models = {"echo": {"tokens_per_second": 20000, "jitter": 0.9}, "steady": {"tokens_per_second": 20}}
    with Stack(models, default_model="echo", queue_limit=64) as stack:
        yield stack


def words(seed: int, size: int) -> str:
    """A text nobody else has: numbered, of mixed scripts, so that tokens split its characters."""
    return "".join(f"{seed}.{index}:{'aß世🦙'[index % 4]} " for index in range(size))


def test_500_streams_from_32_clients(busy_stack: Stack) -> None:
    """Every delivered answer is whole, in order and its own; whoever left was cancelled; nothing is left over."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    plans = [(number, chance.randrange(1, 60), chance.random() < 0.3, chance.random()) for number in range(STREAMS)]
    faults: list[str] = []
    lock = threading.Lock()
    left: list[str] = []

    def one(client: httpx.Client, number: int, size: int, leaves: bool, when: float) -> None:
        text = words(number, size)
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": text}]}
        body["stream_options"] = {"include_usage": True}
        got, done, usage = "", False, None
        with client.stream("POST", f"{busy_stack.url}/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                faults.append(f"{number}: {reply.status_code} {reply.read()!r}")
                return
            job = reply.headers["x-job-id"]
            for line in reply.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    faults.append(f"{number}: {chunk}")
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    got += choice["delta"].get("content") or ""
                if not text.startswith(got):
                    faults.append(f"{number}: {got[-40:]!r} is not its own")
                if leaves and len(got) >= when * len(text):
                    with lock:
                        left.append(job)
                    return
        if got != text or not done or usage is None or usage["completion_tokens"] != len(text.encode()):
            faults.append(f"{number}: incomplete: {len(got)} of {len(text)} characters, done={done}, usage={usage}")

    with (
        httpx.Client(timeout=LIMIT, limits=httpx.Limits(max_connections=CLIENTS)) as client,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        list(threads.map(lambda plan: one(client, *plan), plans))
    assert faults == []
    assert len(left) > 50
    for job in left:
        until_state(busy_stack, job, "cancelled", "finished")
    assert busy_stack.log("board").count("loading echo") == 1

    def leftovers() -> list[str]:
        names = [key.decode() for key in busy_stack.redis.scan_iter(count=10_000)]
        unending = [name for name in names if busy_stack.redis.pttl(name) == -1]
        return [name for name in unending if not any(fnmatch.fnmatch(name, kept) for kept in keys.PERMANENT)]

    eventually(lambda: not leftovers(), what="keys without an expiry to vanish")
    eventually(lambda: not busy_stack.redis.exists("rl:unacked"), what="every call to be acknowledged")


def test_a_cancelled_engine_stops_within_two_tokens(busy_stack: Stack) -> None:
    """At random moments, counted from the very step that records the cancellation."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(12):
        held, job = begin(busy_stack, "steady", "x" * 4000, stream=True)
        wanted = chance.randrange(1, 10)
        eventually(lambda job=job, wanted=wanted: len(read_pieces(busy_stack.redis, job)) >= wanted, what="tokens")
        with busy_stack.redis.pipeline(transaction=True) as pipe:
            pipe.eval(CANCEL.source, 3, keys.job(job), keys.events(job), keys.waiting("steady"), job, "test", CANCELLED)
            pipe.xrange(keys.events(job))
            _, entries = pipe.execute()
        before = sum(len(_decode(fields[b"p"])) for _, fields in entries if b"p" in fields)
        until_state(busy_stack, job, "cancelled")
        generated = view(busy_stack, job)["usage"]["completion_tokens"]
        # Even behind a delay, which an echo makes up for, tokens come too far apart at this pace for two to wait in a buffer.
        assert before <= generated <= before + 2
        leave(held)


def _decode(data: bytes) -> list[object]:
    import msgspec

    return list(msgspec.msgpack.decode(data))
