"""What a worker's child does with a call, and says of itself meanwhile; also where its engine or a record is no good."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from npu.engine import Prompt, Sampling, TextEngine
from npu.engines.echo import EchoEngine
from npu.errors import EngineFailed, ModelRefused
from tasks import keys, presence
from tasks.at_work import anybody_at_work
from tasks.claims import HandedBack, claim_next, hand_back
from tasks.events import EVENTS_VERSION, FailureCode
from tasks.jobs import JobState, Lane, new_job_id
from tasks.record_size import ENTRY
from tasks.worker import pacing, serving
from tests.fakes import engines
from tests.stack import LIMIT, eventually
from tests.tasks.worker.place import WORKER, Make, Place, talking


def test_a_late_message_cancels_nothing_else(make: Make) -> None:
    """Of another job, or of an earlier claim of this one: the run goes on. Its own ends it."""
    place = make()
    talker = talking(place)
    job = place.accept()
    heard: list[tuple[str, str]] = []
    cancel = place.serving._control._on_cancel

    def hear(job: str, claim: str) -> None:
        cancel(job, claim)
        heard.append((job, claim))

    place.serving._control._on_cancel = hear
    first = claim_next(place.client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert first is not None
    assert hand_back(place.client, "echo", job, first.token, "", crashed=False) is HandedBack.WAITING
    place.call()
    talker.say(2)
    eventually(lambda: place.text(job) == "ab", what="the first words")
    assert place.run is not None
    token = place.run.claim.token
    late = [(new_job_id(), token), (job, first.token), (job, "2-7"), (job, token.replace("2-", "3-"))]
    for other, claim in late:
        place.client.publish(keys.control(WORKER), f"cancel {other} {claim}")
    eventually(lambda: heard == late, what="the messages")
    talker.say(1)
    eventually(lambda: place.text(job) == "abc", what="more words")
    assert place.run is not None and not place.run.cancelled
    place.client.publish(keys.control(WORKER), f"cancel {job} {token}")
    place.until(job, JobState.CANCELLED)
    assert place.text(job) == "abc"


@pytest.mark.parametrize(("seconds", "served"), [(LIMIT, 10), (0.0, serving.JOBS_PER_CALL)], ids=["short", "long"])
def test_a_call_serves_some_jobs_and_more_while_they_are_short(
    make: Make, monkeypatch: pytest.MonkeyPatch, seconds: float, served: int
) -> None:
    """The way back through Celery would keep the engine idle; but its parent is not left without news for long."""
    monkeypatch.setattr(serving, "SECONDS_PER_CALL", seconds)
    place = make()
    for _ in range(10):
        place.accept()
    place.call().join(LIMIT)
    assert place.outcomes[0].count("; ") + 1 == served


def test_a_worker_says_how_many_calls_it_has_answered(make: Make) -> None:
    """By that its board's agent sees whether calls reach it. With one in hand it says so: no other can."""
    place = make()

    def answered() -> int | None:
        return presence.read_breath(place.client.hget(keys.PRESENCE, WORKER)).answered  # type: ignore[arg-type]

    eventually(lambda: place.client.hexists(keys.PRESENCE, WORKER), what="a breath")
    assert answered() == 0
    place.call().join(LIMIT)  # there is nothing to do, but it came
    eventually(lambda: answered() == 1, what="the news")
    place.gate.clear()
    place.accept()
    serving_ = place.call()
    eventually(lambda: answered() is None, what="the news")
    place.gate.set()
    serving_.join(LIMIT)
    eventually(lambda: answered() == 2, what="the news")


def test_a_worker_of_a_hot_board_rests_after_an_item_and_serves_chats(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the board has cooled, which its agent says; then the next call has the item."""
    monkeypatch.setattr(pacing, "REST", 1e6)  # a scripted item takes no time
    place = make()

    def board(hot: bool) -> None:
        machine = presence.Machine(hot=hot)
        presence.breathe(place.client, presence.Presence(name="board:one", board="one", machine=machine))
        place.serving._heartbeat.changed()
        eventually(lambda: place.serving._pacing.hot is hot, what="the news")

    board(hot=True)
    talker = talking(place)
    first, second = (place.accept(lane=Lane.BATCH) for _ in range(2))
    serving_ = place.call()
    talker.say(6)
    serving_.join(LIMIT)
    assert place.view(first).state is JobState.FINISHED
    chat = place.accept()
    talker.say(6)
    place.call().join(LIMIT)
    assert place.view(chat).state is JobState.FINISHED
    assert place.view(second).state is JobState.QUEUED
    board(hot=False)
    talker.say(6)
    place.call().join(LIMIT)
    assert place.view(second).state is JobState.FINISHED


def test_a_worker_is_at_work_while_it_has_a_job(make: Make) -> None:
    """By that its board's agent raises the clocks."""
    place = make()
    talker = talking(place)
    place.accept()
    serving_ = place.call()
    eventually(lambda: anybody_at_work(place.model.folder), what="work")
    talker.say(6)
    serving_.join(LIMIT)
    assert not anybody_at_work(place.model.folder)


def test_a_load_is_counted(make: Make) -> None:
    """Once, with the next breath."""
    place = make()
    for _ in range(2):
        place.accept()
        place.call().join(LIMIT)
        place.serving._heartbeat.changed()
    eventually(lambda: place.client.hget(keys.COUNTS, "loads echo"), what="the count")
    assert (place.client.hget(keys.COUNTS, "loads echo"), place.loaded) == (b"1", 1)


@pytest.mark.parametrize("where", ["request", "events"])
def test_what_a_later_version_wrote_fails_its_job_and_nothing_else(make: Make, where: str) -> None:
    """In words, and once: a request of an unknown kind, and an answer that was begun with an event of one."""
    place = make()
    job = place.accept("hi")
    if where == "request":
        place.client.hset(keys.job(job), "request", b'{"type":"telepathy"}')
    else:
        event = msgspec.msgpack.encode([EVENTS_VERSION, [["teleported", 1]]])
        place.client.xadd(keys.events(job), {"e": event}, id="2-7")
        place.client.hset(keys.job(job), "sent", "1")
    place.call()
    error = place.until(job, JobState.FAILED).error
    assert error is not None and error.code is FailureCode.UNREADABLE
    assert "version" in error.message or "cannot be read" in error.message
    assert place.view(job).attempts == 1
    after = place.accept("and on")
    place.call()
    place.until(after, JobState.FINISHED)


def test_a_broken_engine_is_tried_again_while_nothing_was_said(make: Make) -> None:
    """On an engine opened anew, once the broken one has let go of its memory; whoever waited never knows."""
    place = make()
    broken = engines.raises_at_once()
    closed: list[int] = []

    def open_engine() -> TextEngine:
        closed.append(broken.closed)
        return broken if len(closed) == 1 else EchoEngine(place.model)

    place.engine = open_engine
    job = place.accept("again")
    place.call()
    assert place.until(job, JobState.FINISHED).attempts == 2
    assert (place.text(job), closed) == ("again", [0, 1])


def test_an_engine_that_always_breaks_ends_the_job(make: Make) -> None:
    """With the third time, whether something was said or not. The client hears what the engine said."""
    place = make()
    for engine in (engines.raises_at_once, engines.raises_midway):
        place.engine = engine
        job = place.accept()
        place.call()
        found = place.until(job, JobState.FAILED)
        assert found.error is not None and found.error.code is FailureCode.ENGINE_FAILED
        assert "broke on purpose" in found.error.message
        assert found.attempts == 3


@pytest.mark.parametrize("defect", [ModelRefused("too old"), ZeroDivisionError("x")], ids=["refused", "defect"])
def test_a_load_ahead_of_jobs_that_fails_is_logged(
    make: Make, defect: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The next job tries again."""
    place = make()

    def fail() -> TextEngine:
        raise defect

    place.engine = fail
    place.client.publish(keys.control(WORKER), "load")
    eventually(lambda: "echo could not be loaded" in caplog.text, what="the word in the log")
    place.engine = lambda: EchoEngine(place.model)
    job = place.accept()
    place.call()
    place.until(job, JobState.FINISHED)


def test_an_answer_that_outgrows_its_record_is_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At about the limit, with a failure that says so; the engine is free for the next."""
    monkeypatch.setattr("tasks.stream.COALESCE", 0.0)
    place = make(record_limit=20_000)
    job, other = place.accept("x" * 3000), place.accept("short")
    place.call().join(LIMIT)
    found = place.view(job)
    assert found.error is not None and found.error.code is FailureCode.ANSWER_TOO_LARGE
    assert "0.02 MB" in found.error.message
    assert 19_800 < stored(place, job) + found.events * ENTRY < 20_700
    assert 200 < len(place.text(job)) < 300
    assert place.view(other).state is JobState.FINISHED


def test_what_earlier_claims_wrote_counts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a job is interrupted, its record grows no larger."""
    monkeypatch.setattr("tasks.stream.COALESCE", 0.0)
    place = make()
    place.serving._record_limit = 700  # enough for all six words of one claim
    talker = talking(place)
    talker.say(6)
    whole = place.accept()
    place.call()
    place.until(whole, JobState.FINISHED)
    talker.say(5)
    job = place.accept()
    place.call()
    eventually(lambda: place.text(job) == "abcde", what="the first words")
    assert place.run is not None
    place.run.cancel("pause")
    eventually(lambda: place.view(job).attempts == 2, what="the next claim")
    talker.say(6)
    found = place.until(job, JobState.FAILED)
    assert found.error is not None and found.error.code is FailureCode.ANSWER_TOO_LARGE


def stored(place: Place, job: str) -> int:
    """Bytes of the events and pieces in a record."""
    return sum(len(data) for _, entry in place.client.xrange(keys.events(job)) for data in entry.values())


class BreaksWhenAborted(EchoEngine):
    """Ends its first run by breaking, once that is aborted, and is no good from then on."""

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> engines.ScriptedGeneration:  # type: ignore[override]
        def script(aborted: threading.Event) -> Iterator[bytes]:
            yield b"a"
            assert aborted.wait(LIMIT)
            raise EngineFailed("It broke.\nThe model is loaded anew.")

        return engines.ScriptedGeneration(prompt, script)


def test_an_engine_that_breaks_over_an_abort_is_not_given_to_the_next_job(make: Make) -> None:
    """The job that was cancelled is cancelled; the next one gets a sound engine at once."""
    place = make()
    place.engine = lambda: BreaksWhenAborted(place.model) if place.loaded == 1 else EchoEngine(place.model)
    first = place.accept()
    serving_ = place.call()
    eventually(lambda: place.text(first) == "a", what="a part of the answer")
    place.cancel(first)
    place.until(first, JobState.CANCELLED)
    serving_.join(LIMIT)
    second = place.accept("hello")
    place.call()
    assert place.until(second, JobState.FINISHED).attempts == 1
    assert place.loaded == 2


def test_a_reason_of_several_lines_is_one_interruption(make: Make) -> None:
    """As people read them, one for each time."""
    place = make()

    def script(_: threading.Event) -> Iterator[bytes]:
        raise EngineFailed("First line.\nSecond line.")
        yield b""

    place.engine = lambda: engines.ScriptedEngine(script)
    job = place.accept()
    place.call()
    assert place.until(job, JobState.FAILED).interruptions == ("First line. Second line",) * 3


def test_a_setting_of_the_service_is_obeyed(make: Make) -> None:
    """Beside the breath, so that a worker that waits hears of it as well."""
    place = make()
    place.client.hset(keys.SETTINGS, "batch_wait", json.dumps({"value": 7.0, "by": "somebody", "at": 1.0}))
    place.serving._heartbeat.changed()
    eventually(lambda: place.serving._live.now.batch_wait == 7.0, what="a worker that has read it")
