"""What a worker's child does when Redis is away, or a load takes longer than its lease."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
import redis

from npu.engine import TextEngine
from tasks import keys
from tasks.claims import HandedBack, hand_back
from tasks.events import FailureCode
from tasks.jobs import JobState
from tasks.worker import claiming, heartbeat, serving
from tests.stack import LIMIT, Stack, eventually
from tests.tasks.worker.place import Make, talking


@pytest.mark.parametrize("taken", [False, True], ids=["nobody took it", "the sweep took it"])
def test_a_load_that_outlasts_the_lease_while_the_pulse_is_frozen(
    make: Make, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """If nobody took the job it is answered; if somebody did, the run ends without a word and the engine stays loaded."""
    frozen = threading.Event()
    thawed = threading.Event()
    real = heartbeat.renew

    def renew(*args: object) -> object:
        frozen.set()
        assert thawed.wait(LIMIT)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(heartbeat, "renew", renew)
    place = make(lease=0.2)
    place.gate.clear()
    job = place.accept()
    serving_ = place.call()
    assert frozen.wait(LIMIT)

    def lapsed() -> bool:
        seconds, micros = place.client.time()
        return seconds * 1000 + micros // 1000 > place.client.zscore(keys.running("echo"), job)  # type: ignore[operator]

    eventually(lapsed, what="the end of the lease")
    if taken:
        assert place.run is not None
        token = place.run.claim.token
        back = hand_back(place.client, "echo", job, token, "vanished", crashed=True, lapsed_only=True)
        assert back is HandedBack.WAITING
        thawed.set()
        eventually(lambda: place.run is not None and place.run.cancelled, what="the news")
    else:
        thawed.set()
        eventually(lambda: not lapsed(), what="the renewal")
    place.gate.set()
    serving_.join(LIMIT)
    found = place.view(job)
    # Given back, it waited behind this very call, and was claimed anew once the first run had ended.
    assert (found.state, found.attempts) == (JobState.FINISHED, 2 if taken else 1)
    assert place.text(job) == "hello"
    assert place.loaded == 1
    [outcome] = place.outcomes
    assert ("lost" in outcome) == taken


def test_a_claim_waits_for_redis_and_is_made_once(shaky: Stack, make: Make) -> None:
    """The call is not given up, though Redis is away for longer than its client tries."""
    place = make(shaky.redis_url)
    jobs = [place.accept(text) for text in ("one", "two")]
    shaky.stop_valkey()
    place.call()
    eventually(lambda: place.serving._claiming.redis._since is not None, what="a claim in vain")
    shaky.start_valkey()
    for job, text in zip(jobs, ("one", "two"), strict=True):
        assert place.until(job, JobState.FINISHED).attempts == 1
        assert place.text(job) == text


def test_a_claim_whose_reply_is_lost_for_good_strands_no_job(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis went away in that very moment, for longer than its client tries: the same claim is asked for again."""
    place = make()
    monkeypatch.setattr(claiming, "AGAIN", 0.0)
    real = claiming.claim_next
    lost = iter(range(3))

    def claim(*args: object, **kwargs: object) -> object:
        held = real(*args, **kwargs)  # type: ignore[arg-type]
        if next(lost, None) is not None:
            raise redis.ConnectionError("cut off after the reply was sent")
        return held

    monkeypatch.setattr(claiming, "claim_next", claim)
    jobs = [place.accept(text) for text in ("one", "two")]
    place.call()
    for job in jobs:
        assert place.until(job, JobState.FINISHED).attempts == 1
    assert place.client.zcard(keys.running("echo")) == 0


@pytest.mark.parametrize("begun", [False, True], ids=["nothing was sent", "a part was sent"])
def test_an_outage_longer_than_a_workers_patience(
    shaky: Stack, make: Make, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Once Redis is back the job is handed back at once, and runs again or goes on; nobody waits for its lease."""
    monkeypatch.setattr(serving, "OUTAGE_PATIENCE", 0.2)
    monkeypatch.setattr(
        "tasks.stream.COALESCE", 0.0
    )  # each word meets the outage itself, however late the last one was acknowledged
    in_vain: list[Exception] = []
    real = claiming.hand_back

    def hand(*args: object, **kwargs: object) -> object:
        try:
            return real(*args, **kwargs)  # type: ignore[arg-type]
        except redis.RedisError as error:
            in_vain.append(error)
            raise

    monkeypatch.setattr(claiming, "hand_back", hand)
    place = make(shaky.redis_url, lease=10**6)
    talker = talking(place)
    job = place.accept()
    place.call()
    if begun:
        talker.say(1)
        eventually(lambda: place.text(job) == "a", what="a part of the answer")
    eventually(lambda: place.run is not None and place.run.phase != "loading", what="the run")
    shaky.stop_valkey()
    talker.say(1)
    eventually(lambda: len(in_vain) > 1, what="the end of its patience, and tries in vain")
    shaky.start_valkey()
    talker.say(6)
    found = place.until(job, JobState.FINISHED)
    assert place.client.hget(keys.job(job), "failures") is None
    assert found.attempts == 2
    assert not begun or place.text(job).startswith("a")


def test_an_answer_that_redis_forgot_and_nobody_kept(shaky: Stack, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once and with words, instead of going on after a hole; that is no failure of the engine."""
    monkeypatch.setattr("tasks.stream.COALESCE", 0.0)
    monkeypatch.setattr("tasks.stream.MOST_KEPT", 0)
    place = make(shaky.redis_url, lease=10**6)
    talker = talking(place)
    job = place.accept()
    place.call()
    talker.say(1)
    eventually(lambda: place.text(job) == "a", what="a part of the answer")
    moment = shaky.moment()
    talker.say(1)
    eventually(lambda: place.text(job) == "ab", what="more of it")
    shaky.forget_since(moment)
    talker.say(1)
    found = place.until(job, JobState.FAILED)
    assert found.error is not None and found.error.code is FailureCode.ENGINE_LOST
    assert "came back without" in found.error.message
    assert place.text(job) == "a"
    assert place.client.hget(keys.job(job), "failures") is None


def test_an_outage_is_no_standstill_of_the_engine(shaky: Stack, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the writer waits for Redis, longer than a lease, the engine that waits for it is not stuck; and the answer ends
    whole."""
    killed = threading.Event()
    monkeypatch.setattr(heartbeat, "os", SimpleNamespace(kill=lambda *_: killed.set(), getpid=os.getpid))
    place = make(shaky.redis_url, lease=0.1)
    talker = talking(place)
    job = place.accept()
    serving_ = place.call()
    talker.say(1)
    eventually(lambda: place.text(job) == "a", what="the first word")
    run = place.run
    assert run is not None
    shaky.stop_valkey()
    talker.say(5)
    eventually(lambda: run.writer.waits, what="a writer that waits")
    serving_.join(1.0)  # ten leases
    assert run.writer.waits
    run._progressed -= 10**6  # long past the limit for a token
    assert run.stalled is None
    shaky.start_valkey()
    place.until(job, JobState.FINISHED)
    assert place.text(job) == "abcdef"
    assert not killed.is_set()
    run._progressed -= 10**6
    assert run.stalled == 60  # without an outage, it is one


def test_a_worker_that_stops_in_an_outage_waits_no_longer(
    shaky: Stack, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its grace over, it leaves; the sweep ends its claim when Redis is back."""
    monkeypatch.setattr(serving, "OUTAGE_PATIENCE", 10.0**6)
    place = make(shaky.redis_url, worker_grace=0)
    talker = talking(place)
    job = place.accept()
    serving_ = place.call()
    talker.say(1)
    eventually(lambda: place.text(job) == "a", what="the first word")
    run = place.run
    assert run is not None
    shaky.stop_valkey()
    talker.say(5)
    eventually(lambda: run.writer.waits, what="a writer that waits")
    place.serving._departure.stop()  # as a Redis that is away cannot tell it
    serving_.join(LIMIT)
    assert not serving_.is_alive()
    assert place.outcomes == [f"{job} not handed back"]


def test_an_engine_that_cannot_read_its_files_is_no_outage(make: Make) -> None:
    """Though both are an OSError: the job fails, and is not run again for ever."""
    place = make()

    def unreadable() -> TextEngine:
        raise OSError(5, "Input/output error")

    place.engine = unreadable
    job = place.accept()
    place.call()
    found = place.until(job, JobState.FAILED)
    assert found.error is not None and found.error.code is FailureCode.INTERNAL
    assert found.attempts == 1
