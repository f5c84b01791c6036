"""The lock that makes a worker the only one of its model on a board."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import worker_lock
from tasks.settings import ROOT
from tests.stack import LIMIT

WORKER = """
import os, pathlib, sys
from tasks import worker_lock
worker_lock.take(pathlib.Path(sys.argv[1]), "m")
child = 0 if sys.argv[2:] == ["alone"] else os.fork()
if child:
    print(child, flush=True)
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""
"""Holds the lock until its input closes; told to, by a child that it leaves behind."""


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, str(tmp_path), request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process


@pytest.mark.parametrize("worker", ["alone"], indirect=True)
def test_a_second_worker_is_refused_with_the_number_of_the_first(
    worker: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, for the first one lives."""
    monkeypatch.setattr("tasks.worker_lock.time.sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(worker_lock.AlreadyServed, match="already serves 'm'") as refused:
        worker_lock.take(tmp_path, "m")
    assert refused.value.pid == worker.pid == worker_lock.holder(tmp_path, "m")


@pytest.mark.parametrize("worker", ["with a child"], indirect=True)
def test_a_successor_waits_for_what_the_dead_one_left(
    worker: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child holds the model until it notices, too."""
    assert worker.wait(LIMIT) == 0
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        if not waited:
            assert worker.stdin is not None
            worker.stdin.close()  # only now the child leaves
        waited.append(seconds)
        os.sched_yield()

    monkeypatch.setattr("tasks.worker_lock.time.sleep", sleep)
    os.close(worker_lock.take(tmp_path, "m"))
    assert waited
    assert (tmp_path / "run" / "m.worker").read_text() == str(os.getpid())
