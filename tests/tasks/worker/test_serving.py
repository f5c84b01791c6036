"""What a worker's child does with a call when things go wrong: outages, late messages, slow loads."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis

from npu.engine import Prompt, Sampling, TextEngine
from npu.engines.echo import EchoEngine, EchoGeneration
from npu.errors import EngineFailed, ModelRefused
from npu.hidden_tokenizer import HiddenTokenizer
from npu.model import Model
from tasks import keys, presence
from tasks.at_work import anybody_at_work
from tasks.claims import HandedBack, claim_next, hand_back
from tasks.connection import connect, connect_async
from tasks.events import EVENTS_VERSION, FailureCode, TextDelta
from tasks.jobs import JobState, JobView, Lane, new_job_id
from tasks.record_size import ENTRY
from tasks.requests import ChatRequest, Message
from tasks.settings import TaskSettings
from tasks.store import JobStore
from tasks.worker import claiming, heartbeat, leisure, pacing, serving, slot
from tasks.worker.job_run import JobRun
from tasks.worker.leisure import Leisure
from tasks.worker.serving import Serving
from tasks.worker.settings import WorkerSettings
from tests.fakes import engines
from tests.record import read_events
from tests.stack import LIMIT, Stack, eventually

WORKER = "echo@one"


class Place:
    """A worker's child in this process, with an engine that a test holds up, and the jobs it serves."""

    def __init__(
        self, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, board: str = "one", **settings: float
    ) -> None:
        self.url = url
        self.worker = f"echo@{board}"
        self.client = connect(url)
        self.model = Model(id="echo", engine="echo", folder=folder)
        self.loaded = 0
        self.gate = threading.Event()
        self.gate.set()
        self.engine: Callable[[], TextEngine] = lambda: EchoEngine(self.model)
        monkeypatch.setattr(slot, "open_engine", self._open)
        lease = settings.pop("lease", 60.0)
        record_limit = int(settings.pop("record_limit", 10**9))
        self.serving = Serving(
            self.client,
            self.model,
            self.worker,
            board,
            TaskSettings(data_dir=folder, models_dir=folder, lease=lease, record_limit=record_limit),
            WorkerSettings(**settings),
        )
        eventually(lambda: self.client.pubsub_numsub(keys.control(self.worker))[0][1] == 1, what="a listener")
        self.outcomes: list[str] = []
        self._threads: list[threading.Thread] = []

    @property
    def run(self) -> JobRun | None:
        """The job in hand."""
        return next(iter(self.serving._runs), None)

    def _open(self, *_: object) -> TextEngine:
        assert self.gate.wait(LIMIT)
        self.loaded += 1
        return self.engine()

    def accept(self, text: str = "hello", lane: Lane = Lane.INTERACTIVE, owner: str = "") -> str:
        job = new_job_id()

        async def send() -> None:
            aclient = connect_async(self.url)
            store = JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)
            await store.accept(job, "echo", ChatRequest((Message("user", text),)), lane=lane, owner=owner)
            await aclient.aclose()

        asyncio.run(send())
        return job

    def cancel(self, job: str) -> None:
        async def send() -> None:
            aclient = connect_async(self.url)
            await JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600).cancel(job, "test")
            await aclient.aclose()

        asyncio.run(send())

    def view(self, job: str) -> JobView:
        async def look() -> JobView:
            aclient = connect_async(self.url)
            found = await JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600).view(job)
            await aclient.aclose()
            return found

        return asyncio.run(look())

    def text(self, job: str) -> str:
        async def read() -> str:
            aclient = connect_async(self.url)
            events = [item.event for item in await read_events(aclient, job)]
            await aclient.aclose()
            return "".join(event.text for event in events if isinstance(event, TextDelta))

        return asyncio.run(read())

    def until(self, job: str, state: JobState) -> JobView:
        eventually(lambda: self.view(job).state is state, what=f"{state} of {job}")
        return self.view(job)

    def call(self) -> threading.Thread:
        """Serve a call in a thread, as Celery has the child do."""
        thread = threading.Thread(target=lambda: self.outcomes.append(self.serving.serve("a call")), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def close(self) -> None:
        self.gate.set()
        self.serving.close()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()


Make = Callable[..., Place]


@pytest.fixture
def make(
    client: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Place]]:
    """Makes the place, on the shared Valkey or another."""
    made: list[Place] = []

    def build(url: str = valkey_url, board: str = "one", **settings: float) -> Place:
        made.append(Place(url, tmp_path, monkeypatch, board, **settings))
        return made[-1]

    yield build
    for place in made:
        place.close()


@pytest.fixture
def shaky() -> Iterator[Stack]:
    """A Valkey that can be stopped, and started again on its files."""
    stack = Stack({})
    stack.start_valkey()
    yield stack
    stack.stop()


def stop(stack: Stack) -> None:
    process = stack.process("valkey")
    process.terminate()
    process.wait(LIMIT)


class Talker:
    """An engine that says a word each time it is let."""

    def __init__(self) -> None:
        self.said = threading.Semaphore(0)
        self.engine = engines.ScriptedEngine(self._script)

    def _script(self, aborted: threading.Event) -> Iterator[bytes]:
        for letter in b"abcdef":
            while not self.said.acquire(timeout=0.01):
                if aborted.is_set():
                    return
            yield bytes((letter,))

    def say(self, count: int) -> None:
        self.said.release(count)


def talking(place: Place) -> Talker:
    talker = Talker()
    place.engine = lambda: talker.engine
    return talker


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


class ParkingEcho(EchoEngine):
    """Parks what it is told may come back."""

    parks = True

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.prompts: list[Prompt] = []
        self.parked_bytes = 0

    def generate(self, prompt: Prompt, *rest: Any) -> EchoGeneration:
        self.prompts.append(prompt)
        self.parked_bytes += 1000 if prompt.returns else 0
        return super().generate(prompt, *rest)

    def park(self) -> None:
        """See `ParkingEngine`."""

    def unpark(self) -> None:
        self.parked_bytes = 0


def test_chats_may_be_parked_each_for_its_owner_and_given_back(make: Make) -> None:
    """What comes once is not; the worker's breath tells how much it is, and a word on its channel has it given back."""
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


def test_a_chat_is_parked_when_nothing_is_left_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes meanwhile has the engine when that is done, and not before."""
    monkeypatch.setattr(leisure, "QUIET", 0.0)
    place = make()
    engine, seen = ParkingEcho(place.model), []
    begun, let = threading.Event(), threading.Event()
    place.engine = lambda: engine
    generate, end = engine.generate, Leisure.end

    def park() -> None:
        begun.set()
        assert let.wait(LIMIT)
        seen.append("parked")

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


def test_an_engine_that_breaks_over_it_costs_no_job(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened anew for the next one."""
    monkeypatch.setattr(leisure, "QUIET", 0.0)
    place = make()
    place.engine = lambda: ParkingEcho(place.model)

    def breaks(self: ParkingEcho) -> None:
        raise EngineFailed("It broke.")

    monkeypatch.setattr(ParkingEcho, "park", breaks)
    place.accept()
    place.call().join(LIMIT)
    eventually(lambda: not place.serving._slot.loaded, what="a closed engine")
    job = place.accept()
    place.call().join(LIMIT)
    assert place.view(job).state is JobState.FINISHED and place.loaded == 2


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
    stop(shaky)
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
    stop(shaky)
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
    stop(shaky)
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
    stop(shaky)
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
    place.until(job, JobState.RUNNING)
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
