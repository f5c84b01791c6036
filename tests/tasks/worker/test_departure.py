"""A worker that stops or makes way: what becomes of the job in its hands, and who is next."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.engines.echo import EchoEngine
from npu.hidden_tokenizer import HiddenTokenizer
from npu.model import Model
from tasks import keys
from tasks.claims import claim_next
from tasks.jobs import JobState, Lane
from tasks.worker import heartbeat
from tests.stack import LIMIT, eventually
from tests.tasks.worker.place import WORKER, Make, talking


def test_a_worker_that_stops_while_it_loads_hands_its_job_back_at_once(make: Make) -> None:
    """Nothing ends a load early, and the job need not wait for it; the load's end changes nothing any more."""
    place = make(worker_grace=0)
    place.gate.clear()
    job = place.accept()
    serving_ = place.call()
    eventually(lambda: place.run is not None, what="the claim")
    place.client.publish(keys.control(WORKER), "stop")
    place.until(job, JobState.QUEUED)
    assert serving_.is_alive() and place.loaded == 0
    assert place.client.hget(keys.job(job), "failures") is None
    successor = claim_next(place.client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert successor is not None and successor.job == job
    place.gate.set()
    serving_.join(LIMIT)
    assert place.view(job).state is JobState.RUNNING
    assert place.client.hget(keys.job(job), "fence") == b"2"


def test_a_chat_goes_before_what_runs_in_the_background(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of its prefill, with no renewal due; when it may go on there is a call, and its answer is whole. What was
    prefilled twice is counted."""
    monkeypatch.setattr(heartbeat, "RENEWAL", 1000.0)
    place = make(lease=10**6)
    options = {"prefill_tokens_per_second": 640.0}
    place.engine = lambda: EchoEngine(Model(id="echo", engine="echo", folder=Path("echo"), engine_options=options))
    low = place.accept("l" * 3000, Lane.BACKGROUND)
    serving_ = place.call()
    eventually(lambda: place.run is not None and place.run.done >= 128, what="a part of the prefill")
    options["prefill_tokens_per_second"] = 0.0
    chat = place.accept("hello")
    serving_.join(LIMIT)
    assert [outcome.split(": ", 1) for outcome in place.outcomes[0].split("; ")] == [
        [f"{low} handed back", "a chat came first"],
        [f"{chat} stop", "5 tokens"],
    ]
    assert place.view(low).state is JobState.QUEUED
    # Nobody takes calls here: there is that for the first job and that for the pause, and then one more.
    eventually(lambda: place.client.llen(keys.calls("echo")) == 3, what="a call")
    place.call()
    found = place.until(low, JobState.FINISHED)
    assert place.text(low) == "l" * 3000
    assert (found.pauses, found.attempts, found.interruptions) == (1, 2, ())
    assert 100 < found.prompt_tokens_again < 3000
    assert place.loaded == 1


def test_a_chat_that_comes_while_the_model_loads_is_the_first_to_be_answered(make: Make) -> None:
    """Whatever the load was begun for goes after it."""
    place = make()
    place.gate.clear()
    low = place.accept(lane=Lane.BATCH)
    serving_ = place.call()
    eventually(lambda: place.run is not None, what="the claim")
    chat = place.accept()
    eventually(lambda: place.run is not None and place.run.cancelled, what="the pause")
    place.gate.set()
    serving_.join(LIMIT)
    jobs = [outcome.split()[0] for outcome in place.outcomes[0].split("; ")]
    assert jobs == [low, chat, low]
    assert place.loaded == 1


def test_a_worker_that_is_told_to_stop_pauses_and_takes_nothing_more(make: Make) -> None:
    """The chat is for another worker, and so is what was paused."""
    place = make(worker_grace=1000)
    place.gate.clear()
    low = place.accept(lane=Lane.BACKGROUND)
    serving_ = place.call()
    eventually(lambda: place.run is not None, what="the claim")
    place.client.publish(keys.control(WORKER), "stop")
    chat = place.accept()
    eventually(lambda: place.run is not None and place.run.reason == "pause", what="the pause")
    eventually(lambda: place.serving._claiming.stopping, what="the stop")
    place.gate.set()
    serving_.join(LIMIT)
    assert [place.view(job).state for job in (low, chat)] == [JobState.QUEUED] * 2
    assert place.client.zcard(keys.running("echo")) == 0


def test_a_worker_that_gives_way_ends_its_job_first(make: Make) -> None:
    """However short its grace is otherwise. What waits is for later."""
    place = make(worker_grace=0)
    place.gate.clear()
    job = place.accept()
    serving_ = place.call()
    eventually(lambda: place.run is not None, what="the claim")
    later = place.accept()
    place.client.publish(keys.control(WORKER), "finish 1000")
    place.client.publish(keys.control(WORKER), "stop")
    eventually(lambda: place.serving._claiming.stopping, what="the stop")
    place.gate.set()
    serving_.join(LIMIT)
    assert [place.view(each).state for each in (job, later)] == [JobState.FINISHED, JobState.QUEUED]
    assert not place.serving._departure.over.is_set()


def test_what_could_not_be_gone_on_with_is_not_paused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer to a prompt whose tokens nobody knows ends before the chat begins."""
    monkeypatch.setattr(heartbeat, "RENEWAL", 0.01)
    place = make()
    talker = talking(place)
    talker.engine.tokenizer = HiddenTokenizer("echo")  # type: ignore[assignment]
    low = place.accept(lane=Lane.BACKGROUND)
    serving_ = place.call()
    talker.say(1)
    eventually(lambda: place.text(low) == "a", what="a part of the answer")
    chat = place.accept()
    renewed = place.client.zscore(keys.running("echo"), low)
    eventually(lambda: place.client.zscore(keys.running("echo"), low) > renewed, what="a renewal")  # type: ignore[operator]
    assert place.view(chat).state is JobState.QUEUED
    talker.say(11)
    serving_.join(LIMIT)
    assert [outcome.split()[0] for outcome in place.outcomes[0].split("; ")] == [low, chat]
    assert (place.text(low), place.view(low).pauses) == ("abcdef", 0)


def test_a_job_that_is_to_be_paused_can_still_be_cancelled(make: Make) -> None:
    """While the model loads it ends at once, though it was told to make way before."""
    place = make()
    place.gate.clear()
    low = place.accept(lane=Lane.BACKGROUND)
    place.call()
    eventually(lambda: place.run is not None, what="the claim")
    place.accept()
    eventually(lambda: place.run is not None and place.run.reason == "pause", what="the pause")
    place.cancel(low)
    place.until(low, JobState.CANCELLED)
    assert place.run is not None and place.run.claim.job == low  # the load goes on
    place.gate.set()
