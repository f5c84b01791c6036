"""Chats that a worker parks: when, for whom, and what that may cost."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from npu.engine import Prompt
from npu.engines.echo import EchoEngine, EchoGeneration
from npu.errors import EngineFailed
from npu.model import Model
from tasks import keys, presence
from tasks.jobs import JobState, Lane
from tasks.worker import claiming, heartbeat, leisure, serving
from tasks.worker.leisure import Leisure
from tests.stack import LIMIT, eventually
from tests.tasks.worker.place import WORKER, Make, Place


class ParkingEcho(EchoEngine):
    """Parks what it is told may come back."""

    parks = True

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.prompts: list[Prompt] = []
        self.parked_bytes = 0
        self.paused = 0.0

    def generate(self, prompt: Prompt, *rest: Any) -> EchoGeneration:
        self.prompts.append(prompt)
        self.parked_bytes += 1000 if prompt.returns else 0
        return super().generate(prompt, *rest)

    def park(self) -> float:
        """See `ParkingEngine`."""
        return 0.0

    def unpark(self) -> None:
        self.parked_bytes = 0

    def pause_parking(self, seconds: float) -> None:
        self.paused = seconds


def state(place: Place) -> str:
    """What the worker's last breath tells."""
    return presence.read_breath(place.client.hget(keys.PRESENCE, WORKER)).state  # type: ignore[arg-type]


def test_chats_may_be_parked_each_for_its_owner_and_given_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes once is not; the worker's breath tells how much it is, and a word on its channel has it given back."""
    monkeypatch.setattr(heartbeat, "BREATH", 0.05)
    place = make()
    engine = ParkingEcho(place.model)
    place.engine = lambda: engine

    def parked() -> int:
        return presence.read_breath(place.client.hget(keys.PRESENCE, WORKER)).parked  # type: ignore[arg-type]

    for lane, owner in ((Lane.INTERACTIVE, "a"), (Lane.BACKGROUND, "b"), (Lane.BATCH, "c"), (Lane.INTERACTIVE, "d")):
        place.accept(lane=lane, owner=owner)
        place.call().join(LIMIT)
    told = [(prompt.owner, prompt.returns) for prompt in engine.prompts]
    assert told == [("a", True), ("b", False), ("c", False), ("d", True)]
    eventually(lambda: parked() == 2000, what="a breath that tells")
    place.client.publish(keys.control(WORKER), "unpark")
    eventually(lambda: parked() == 0, what="a breath that tells it was given back")
    place.client.publish(keys.control(WORKER), "pause-parking 15")
    eventually(lambda: engine.paused == 15, what="an engine that parks nothing for a while")


def test_a_chat_is_parked_when_nothing_is_left_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes meanwhile has the engine when that is done, and not before."""
    monkeypatch.setattr(leisure, "QUIET", 0.0)
    place = make()
    engine, seen = ParkingEcho(place.model), []
    begun, let = threading.Event(), threading.Event()
    place.engine = lambda: engine
    generate, end = engine.generate, Leisure.end

    def park() -> float:
        begun.set()
        assert let.wait(LIMIT)
        seen.append("parked")
        return 0.0

    def runs(*given: Any) -> EchoGeneration:
        seen.append("runs")
        return generate(*given)

    def waits(self: Leisure) -> None:
        if begun.is_set():
            let.set()
        end(self)

    monkeypatch.setattr(engine, "park", park)
    monkeypatch.setattr(engine, "generate", runs)
    monkeypatch.setattr(Leisure, "end", waits)
    place.accept()
    place.call().join(LIMIT)
    assert begun.wait(LIMIT)
    place.accept()
    place.call().join(LIMIT)
    assert seen[:3] == ["runs", "parked", "runs"]


def test_what_is_paused_is_parked_after_the_pause(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not while a job has the engine."""
    monkeypatch.setattr(leisure, "QUIET", 0.0)
    place = make()
    place.engine = lambda: ParkingEcho(place.model)
    tried, left, done = [], iter((0.01, 0.01, 0.0, 3600.0)), threading.Event()

    def parks(self: ParkingEcho) -> float:
        tried.append(place.run)
        if len(tried) >= 3:
            done.set()
        return next(left)

    monkeypatch.setattr(ParkingEcho, "park", parks)
    place.accept()
    place.call().join(LIMIT)
    assert done.wait(LIMIT)
    done.clear()
    place.accept()
    place.call().join(LIMIT)
    assert done.wait(LIMIT)
    place.serving.close()
    assert tried == [None] * 4 and place.serving._leisure._timer is None


def test_an_engine_that_breaks_over_it_costs_no_job(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened anew for the next one, and the board knows at once that nothing is loaded."""
    monkeypatch.setattr(leisure, "QUIET", 0.0)
    monkeypatch.setattr(heartbeat, "BREATH", 100 * LIMIT)
    place = make()
    place.engine = lambda: ParkingEcho(place.model)
    let = threading.Event()

    def breaks(self: ParkingEcho) -> None:
        assert let.wait(LIMIT)
        raise EngineFailed("It broke.")

    monkeypatch.setattr(ParkingEcho, "park", breaks)
    place.accept()
    place.call().join(LIMIT)
    eventually(lambda: state(place) in ("loaded", "busy"), what="a breath that tells of a loaded engine")
    let.set()
    eventually(lambda: state(place) == "idle", what="a breath that tells of a closed engine")
    job = place.accept()
    place.call().join(LIMIT)
    assert place.view(job).state is JobState.FINISHED and place.loaded == 2


def test_an_engine_that_hangs_over_it_is_restarted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a job comes, which would wait for it as long as for a model that loads."""
    monkeypatch.setattr(leisure, "QUIET", 0.0)
    monkeypatch.setattr(leisure, "LONGEST", 0.1)
    monkeypatch.setattr(heartbeat, "BREATH", 0.05)
    place = make()
    place.engine = lambda: ParkingEcho(place.model)
    killed, kill = threading.Event(), os.kill

    def kills(process: int, number: int) -> None:
        if (process, number) == (os.getpid(), signal.SIGKILL):
            killed.set()
        else:
            kill(process, number)

    def hangs(self: ParkingEcho) -> float:
        assert killed.wait(LIMIT)
        return 0.0

    monkeypatch.setattr(os, "kill", kills)
    monkeypatch.setattr(ParkingEcho, "park", hangs)
    place.accept()
    place.call().join(LIMIT)
    assert killed.wait(LIMIT)
    eventually(lambda: not place.serving._leisure.stuck, what="an engine that was let go of")


def test_a_job_is_in_hand_while_the_engine_is_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """So its lease is renewed, and an engine that hangs is noticed: also while another board wants to have a job read here. One
    that breaks then is loaded for the job, which says how long that took."""
    monkeypatch.setattr(leisure, "QUIET", 0.0)
    place = make()
    begun, let = threading.Event(), threading.Event()
    place.engine = lambda: ParkingEcho(place.model)

    def breaks_at_last(self: ParkingEcho) -> None:
        begun.set()
        assert let.wait(LIMIT)
        raise EngineFailed("It broke.")

    monkeypatch.setattr(ParkingEcho, "park", breaks_at_last)
    place.accept()
    place.call().join(LIMIT)
    assert begun.wait(LIMIT)
    try:
        place.client.publish(keys.control(WORKER), "read-ahead gone other@two")
        eventually(lambda: place.serving._ahead is not None, what="the other board's wish")
        place.accept()
        call = place.call()
        run = eventually(lambda: place.run, what="a job in hand")
    finally:
        let.set()
    call.join(LIMIT)
    assert place.loaded == 2 and run.load_ms > 0


def test_a_job_that_a_stopped_worker_waited_for_is_for_another_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is claimed with its call, and waits again with a new one."""
    place = make()
    monkeypatch.setattr(serving, "NEXT", 10 * LIMIT)
    monkeypatch.setattr(claiming, "SLICE", 4.0)
    place.accept()
    waiting = place.call()
    eventually(lambda: place.client.info("clients")["blocked_clients"] == 1, what="one who waits for a call")
    place.serving._claiming.stopping = True
    two = place.accept()
    waiting.join(LIMIT)
    assert f"{two} handed back" in place.outcomes[0]
    assert place.view(two).state is JobState.QUEUED
    assert place.client.llen(keys.calls("echo")) == 1


def test_who_comes_soon_is_served_on_the_same_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker takes that call by itself; and stops at once, however long it would wait for another."""
    place = make()
    monkeypatch.setattr(serving, "NEXT", 10 * LIMIT)
    one = place.accept()
    waiting = place.call()
    place.until(one, JobState.FINISHED)
    eventually(lambda: place.client.llen(keys.calls("echo")) == 0, what="a worker that has taken its call")
    two = place.accept()
    place.until(two, JobState.FINISHED)
    eventually(lambda: place.client.llen(keys.calls("echo")) == 0, what="a worker that has taken that call, too")
    place.client.publish(keys.control(WORKER), "stop")
    waiting.join(LIMIT)
    assert not waiting.is_alive() and len(place.outcomes) == 1 and two in place.outcomes[0]
