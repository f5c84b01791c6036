"""What a worker that died had in hand ends at once, and what anybody else has goes on."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest
import redis

from tasks import keys
from tasks.board import losses as module
from tasks.board.losses import Losses

MINE = "echo@one"


def hold(client: redis.Redis, job: str, child: int, worker: str = MINE) -> None:
    """A running job."""
    record = {
        "state": "running",
        "claim": "1-7",
        "worker": worker,
        "child": child,
        "call": "c",
        "order": 1,
    }
    client.hset(keys.job(job), mapping=record)
    client.zadd(keys.running("echo"), {job: 10**15})


def state(client: redis.Redis, job: str) -> bytes | None:
    return client.hget(keys.job(job), "state")  # type: ignore[return-value]


def dead() -> int:
    """The number of a process that was there."""
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_claims_of_dead_children_end_at_once(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of a child that outlives its parent, of a successor, of another board's worker; nor before a worker ended."""
    now = 1000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    gone = dead()
    hold(client, "lost", gone)
    hold(client, "lives", os.getpid())
    hold(client, "elsewhere", gone, "echo@two")
    losses = Losses(client, "one", lease=10)
    losses.report()
    assert state(client, "lost") == b"running"
    losses.note(["echo", "another"])
    losses.report()
    assert [state(client, job) for job in ("lost", "lives", "elsewhere")] == [b"queued", b"running", b"running"]
    assert b"died" in client.hget(keys.job("lost"), "history")  # type: ignore[operator]
    hold(client, "late", gone)  # its child outlived the parent for a moment
    losses.report()
    assert state(client, "late") == b"queued"
    now += 11
    losses.report()
    hold(client, "later", gone)
    losses.report()
    assert state(client, "later") == b"running"  # the sweep's, with its lease


def test_a_child_that_nobody_buries_is_dead(client: redis.Redis) -> None:
    """Where the first process of a container is no init, it stays in the list of processes for ever."""
    process = subprocess.Popen(["/bin/true"], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    hold(client, "lost", process.pid)
    losses = Losses(client, "one", lease=10)
    losses.note(["echo"])
    losses.report()
    assert state(client, "lost") == b"queued"
    process.wait()
