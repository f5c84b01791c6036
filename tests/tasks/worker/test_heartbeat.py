"""The threads of a worker that must outlive everything: its pulse and its ear; and the pulse that ends a stuck process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import redis

from tasks import keys
from tasks.presence import Presence
from tasks.worker import cancellation, heartbeat
from tasks.worker.cancellation import ControlListener
from tasks.worker.heartbeat import Heartbeat
from tests.stack import LIMIT, eventually

ECHO = Presence(name="echo@one", board="one", model="echo")


class Ear:
    """What a listener was told."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.cancelled: list[tuple[str, str]] = []
        self.defects: list[Exception] = []
        self.listener = ControlListener(
            client,
            "echo@one",
            on_load=self._load,
            on_cancel=self._cancel,
            on_chat=self._cancel,
            on_finish=lambda _: None,
            on_stop=lambda: None,
            on_hand_over=lambda: None,
            on_was_read=lambda: None,
            on_unpark=lambda: None,
            on_pause_parking=lambda _: None,
            on_move=lambda: None,
            on_read_ahead=self._cancel,
        )

    def _load(self) -> None:
        if self.defects:
            raise self.defects.pop()

    def _cancel(self, job: str, claim: str) -> None:
        self.cancelled.append((job, claim))

    def tell(self, word: str, understood: Callable[[], bool]) -> None:
        """Say it until it was understood: a listener that listens anew is deaf for a moment."""

        def say() -> bool:
            self.client.publish(keys.control("echo@one"), word)
            return understood()

        eventually(say, what=f"an ear for '{word}'")


@pytest.fixture
def ear(client: redis.Redis) -> Iterator[Ear]:
    made = Ear(client)
    yield made
    made.listener.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulses and tries follow each other fast."""
    monkeypatch.setattr(heartbeat, "BREATH", 0.02)
    monkeypatch.setattr(cancellation, "AGAIN", 0.02)


@pytest.mark.parametrize(
    "defect",
    [ZeroDivisionError("x"), redis.ResponseError("WRONGTYPE x"), redis.DataError("x")],
    ids=lambda error: type(error).__name__,
)
def test_a_listener_survives_whatever_happens(ear: Ear, defect: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Deaf, the worker could neither be cancelled nor stopped. The log has the trace."""

    def traces() -> set[type]:
        return {type(record.exc_info[1]) for record in caplog.records if record.exc_info}

    ear.defects = [defect]
    ear.tell("load", lambda: type(defect) in traces())
    ear.tell("no such word", lambda: "unknown word" in caplog.text)
    ear.tell("cancel job 1-7", lambda: ("job", "1-7") in ear.cancelled)
    assert traces() == {type(defect)}


def test_a_pulse_survives_whatever_happens(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A presence that cannot be told, a key of another type: each is logged, and the next breath is drawn."""
    defects: list[Exception] = [ZeroDivisionError("x"), redis.ResponseError("x"), redis.OutOfMemoryError("x")]

    def presence() -> Presence:
        if defects:
            raise defects.pop()
        return ECHO

    client.set(keys.PRESENCE, "of another type")
    beating = Heartbeat(client, 10, presence, lambda: None)
    try:
        eventually(lambda: "WRONGTYPE" in caplog.text, what="a refused breath")
        client.delete(keys.PRESENCE)
        eventually(lambda: client.hexists(keys.PRESENCE, "echo@one"), what="a breath")
    finally:
        beating.close()
    traces = {type(record.exc_info[1]) for record in caplog.records if record.exc_info}
    assert traces == {ZeroDivisionError, redis.ResponseError}  # full memory is an outage, and no defect


@pytest.mark.parametrize("trouble", ["maxmemory 1", "min-replicas-to-write 1"])
def test_a_pulse_goes_on_where_redis_refuses(
    client: redis.Redis, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In full memory it is heard; while nothing can be written it says once that it tries, and is heard afterwards."""
    name, value = trouble.split()
    before = client.config_get(name)[name]
    client.config_set(name, value)
    beating = Heartbeat(client, 10, lambda: ECHO, lambda: None)
    try:
        if name == "maxmemory":
            eventually(lambda: client.hexists(keys.PRESENCE, "echo@one"), what="a breath in full memory")
        else:
            eventually(lambda: "lost Redis" in caplog.text, what="a breath that was refused")
    finally:
        client.config_set(name, before)
    eventually(lambda: client.hexists(keys.PRESENCE, "echo@one"), what="a breath")
    beating.close()
    assert caplog.text.count("lost Redis") == (name != "maxmemory")
    assert "Traceback" not in caplog.text


STUCK = """
import sys, threading
from types import SimpleNamespace
from tasks.claims import Claim
from tasks.connection import connect
from tasks.events import TextDelta
from tasks.roster import Presence
from tasks.stream import EventWriter
from tasks.worker.heartbeat import Heartbeat
from tasks.worker.job_run import JobRun
from tasks.worker.settings import WorkerSettings

url, limit, *reasons = sys.argv[1:]
client = connect(url)
claim = Claim("a" * 22, "echo", "1-7", 2, b"", "interactive")
run = JobRun(claim, WorkerSettings(**{limit: 0.2}), 10**9)
run.writer = EventWriter(client, claim.job, "echo", claim.token, 2, lambda: None, patience=5)
if limit != "load_stall":
    run.begin(SimpleNamespace(abort=lambda: None))
if limit == "token_stall":
    run.write((), None)
    run.write((), __import__("tasks.stream").stream.RecordedPiece(0, 1, b""))
for reason in reasons:
    run.cancel(reason)
beating = Heartbeat(client, 10, lambda: Presence(name="echo@one", board="one", model="echo"), lambda: None)
print("stuck", flush=True)
beating.hold((run,))
threading.Event().wait()
"""


@pytest.mark.parametrize("limit", ["load_stall", "prefill_stall", "token_stall"])
def test_a_process_whose_engine_is_stuck_ends_itself(client: redis.Redis, valkey_url: str, limit: str) -> None:
    """In each phase by its own limit, the hard way: nothing else ends code in C."""
    client.hset(
        keys.job("a" * 22),
        mapping={"state": "running", "claim": "1-7", "model": "echo", "order": 0, "deadline": 10**15},
    )
    process = subprocess.run(
        [sys.executable, "-c", STUCK, valkey_url, limit], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert process.stdout == "stuck\n", process.stderr
    assert process.returncode == -signal.SIGKILL
    assert "made no progress" in process.stderr


@pytest.mark.parametrize(
    ("reason", "waiting", "restarts"),
    [("cancelled", True, True), ("deadline", True, True), ("cancelled", False, False), ("pause", True, False)],
)
def test_a_prefill_that_nobody_wants_and_nothing_aborts_ends_when_others_wait(
    client: redis.Redis, valkey_url: str, reason: str, waiting: bool, restarts: bool
) -> None:
    """A model is loaded sooner than minutes of it are over. One that is to go on later is not thrown away, nor one that is in
    nobody's way."""
    client.hset(
        keys.job("a" * 22),
        mapping={"state": "running", "claim": "1-7", "model": "echo", "order": 0, "deadline": 10**15, "lane": "batch"},
    )
    if waiting:
        client.zadd(keys.waiting("echo"), {"b" * 22: 1})
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, valkey_url, "abandoned_prefill", reason],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if restarts:
                assert process.wait(LIMIT) == -signal.SIGKILL
                return
            assert process.stdout is not None and process.stdout.readline() == "stuck\n"
            breaths: set[object] = set()

            def breathes_on() -> bool:
                breaths.add(client.hget(keys.PRESENCE, "echo@one"))
                return len(breaths) > 3

            eventually(breathes_on, what="some breaths past the limit")
            assert process.poll() is None
        finally:
            process.kill()
