"""Batch items that share one run of an engine, in a worker's child and in Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio

from npu.engine import Prompt, Sampling
from npu.errors import EngineFailed
from tasks import keys
from tasks.claims import Claim, HandedBack, claim_next, hand_back
from tasks.connection import connect_async
from tasks.events import FailureCode
from tasks.jobs import JobState, Lane, Phase, new_job_id
from tasks.requests import ChatRequest, CompletionRequest, EmbedRequest, Message, SamplingOptions, Tool, kin_of
from tasks.store import JobStore
from tasks.stream import EventWriter
from tasks.worker import job_run, serving
from tasks.worker.job_run import JobRun
from tasks.worker.serving import Serving
from tasks.worker.settings import WorkerSettings
from tasks.worker.together import Seat, Table
from tests.fakes.clock import Clock
from tests.fakes.engines import ScriptedEngine, ScriptedGeneration
from tests.stack import LIMIT, eventually
from tests.tasks.worker.place import Make, Place


class Choir(ScriptedEngine):
    """Says each prompt again, a letter at a time, all of a run in step, as far as a test lets it."""

    slots = 4

    def __init__(self) -> None:
        super().__init__(lambda aborted: iter(()))
        self.runs: list[list[str]] = []
        """What each run was asked."""
        self.most = 4
        """Prompts that it takes at once."""
        self._steps = 0
        self._changed = threading.Condition()

    def let(self, steps: int = 10**6) -> None:
        """Let each run that waits say so many more letters."""
        with self._changed:
            self._steps += steps
            self._changed.notify_all()

    def fitting(self, prompts: Sequence[Prompt]) -> int:
        return min(self.most, len(prompts))

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> ScriptedGeneration:
        return self.generate_together([prompt], sampling)[0]

    def generate_together(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[ScriptedGeneration]:
        texts = [self.tokenizer.decode(prompt.tokens).decode() for prompt in prompts]
        self.runs.append(list(texts))
        said = [
            text[len(text) - prompt.said :] if prompt.said else "" for text, prompt in zip(texts, prompts, strict=True)
        ]
        asked = [text[: len(text) - len(begun)] for text, begun in zip(texts, said, strict=True)]
        return [
            ScriptedGeneration(prompt, lambda aborted, text=text, begun=begun: self._say(text, len(begun), aborted))
            for prompt, text, begun in zip(prompts, asked, said, strict=True)
        ]

    def _say(self, text: str, at: int, aborted: threading.Event) -> Iterator[bytes]:
        for place, letter in enumerate(text[at:].encode()):
            with self._changed:
                while self._steps <= place and not aborted.is_set():
                    self._changed.wait(0.01)
            if aborted.is_set():
                return
            if letter == ord("!"):
                raise EngineFailed("broke on purpose")
            yield bytes((letter,))


class Stage:
    """A worker with that engine, and jobs for it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.engine = Choir()
        place.engine = lambda: self.engine

    def accept(self, text: str, lane: Lane = Lane.BATCH, **more: Any) -> str:
        job = new_job_id()
        request = CompletionRequest((text,), **more)

        async def send() -> None:
            aclient = connect_async(self.place.url)
            store = JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)
            await store.accept(job, "echo", request, lane=lane, owner="somebody")
            await aclient.aclose()

        asyncio.run(send())
        return job

    def finished(self, *jobs: str) -> list[str]:
        """The texts of these jobs, each whole."""
        for job in jobs:
            self.place.until(job, JobState.FINISHED)
        return [self.place.text(job) for job in jobs]

    def until_said(self, *jobs: str) -> None:
        for job in jobs:
            eventually(lambda job=job: self.place.text(job) != "", what="the beginning of an answer")  # type: ignore[misc]


@pytest.fixture
def stage(make: Make) -> Stage:
    return Stage(make())


def test_items_of_a_kin_share_a_run(stage: Stage) -> None:
    """Up to as many as there are slots; each says its own, and how many it shared the engine with."""
    texts = [f"item {number}" for number in range(5)]
    jobs = [stage.accept(text) for text in texts]
    stage.engine.let()
    stage.place.call().join(LIMIT)
    assert stage.finished(*jobs) == texts
    assert stage.engine.runs == [texts[:4], texts[4:]]
    timings = [stage.place.view(job).timings for job in jobs]
    assert [timing.together for timing in timings if timing is not None] == [4, 4, 4, 4, 1]
    assert stage.place.view(jobs[1]).usage is not None and stage.place.view(jobs[1]).worker == "echo@one"


def test_others_run_alone(stage: Stage) -> None:
    """Who wants something else of the sampler, is no batch item, or is a crash's suspect; and nobody is lost by it."""
    first = stage.accept("first")
    warm = stage.accept("warm", sampling=SamplingOptions(temperature=0.5))
    twice = stage.accept("twice", n=2)
    second = stage.accept("second")
    chat = stage.accept("chat", lane=Lane.BACKGROUND)
    suspect = stage.accept("suspect")
    stage.place.client.hset(keys.job(suspect), "alone", 1)
    stage.engine.let()
    stage.place.call().join(LIMIT)
    stage.finished(first, warm, twice, second, chat, suspect)
    assert stage.engine.runs == [["chat"], ["first", "second"], ["warm"], ["twice"], ["twice"], ["suspect"]]


def test_what_is_too_much_to_read_at_once_goes_in_parts(stage: Stage) -> None:
    """The engine says how many it takes; those that are left share the next run."""
    stage.engine.most = 2
    jobs = [stage.accept(f"item {number}") for number in range(4)]
    stage.engine.let()
    stage.place.call().join(LIMIT)
    assert stage.finished(*jobs) == [f"item {number}" for number in range(4)]
    assert sorted(len(run) for run in stage.engine.runs) == [2, 2]


def test_each_ends_by_itself(stage: Stage) -> None:
    """By its length, its stop sequence, a cancel, or because it cannot run at all; the others go on."""
    short = stage.accept("short enough", max_tokens=9)
    stopped = stage.accept("one STOP two", stop=("STOP",), max_tokens=10)
    cancelled = stage.accept("a cancelled one", max_tokens=15)
    whole = stage.accept("a whole one", max_tokens=11)
    stage.engine.let(3)
    stage.place.call()
    stage.until_said(short, stopped, cancelled, whole)
    stage.place.cancel(cancelled)
    stage.place.until(cancelled, JobState.CANCELLED)
    assert stage.place.view(whole).state is JobState.RUNNING
    stage.engine.let()
    assert stage.finished(short, stopped, whole) == ["short eno", "one ", "a whole on" + "e"]
    assert len(stage.engine.runs[0]) == 4


def test_one_that_cannot_run_holds_nobody_up(stage: Stage) -> None:
    """Its prompt is longer than the context: it fails, and the others begin."""
    long = stage.accept("x" * 9000)
    jobs = [stage.accept(f"item {number}") for number in range(2)]
    stage.engine.let()
    stage.place.call().join(LIMIT)
    error = stage.place.until(long, JobState.FAILED).error
    assert error is not None and error.code is FailureCode.CONTEXT_TOO_LONG
    assert stage.finished(*jobs) == ["item 0", "item 1"]


def test_a_chat_goes_before_all_of_them(stage: Stage) -> None:
    """One is enough to end the run; every item goes on later where it was, and says nothing twice."""
    jobs = [stage.accept(f"a long item {number}") for number in range(4)]
    stage.engine.let(3)
    stage.place.call()
    stage.until_said(*jobs)
    chat = stage.accept("chat", lane=Lane.INTERACTIVE)
    eventually(lambda: stage.place.view(jobs[3]).state is JobState.QUEUED, what="a pause")
    stage.engine.let()
    stage.place.until(chat, JobState.FINISHED)
    # They wait until no chat has come for a while; whoever is called before that finds nothing.
    eventually(lambda: stage.place.call().join(LIMIT) or stage.place.view(jobs[3]).ended_at, what="the rest of it")
    assert stage.finished(chat, *jobs) == ["chat", *(f"a long item {number}" for number in range(4))]
    assert [stage.place.view(job).pauses for job in jobs] == [1, 1, 1, 1]
    assert stage.engine.runs[1] == ["chat"]


def test_nobody_pays_for_the_one_that_broke_the_engine(stage: Stage) -> None:
    """It shows when each runs alone: that one fails after its three tries, the others have lost nothing but time."""
    jobs = [stage.accept(text) for text in ("one", "two!", "three")]
    stage.engine.let()
    for _ in range(3):
        stage.place.call().join(LIMIT)
    assert stage.finished(jobs[0], jobs[2]) == ["one", "three"]
    failed = stage.place.until(jobs[1], JobState.FAILED)
    assert failed.attempts == 4 and "broke on purpose" in str(failed.error)
    for job in (jobs[0], jobs[2]):
        assert stage.place.client.hget(keys.job(job), "failures") is None


def test_a_worker_that_stops_hands_all_of_them_back(stage: Stage) -> None:
    """They go on elsewhere."""
    jobs = [stage.accept(f"a long item {number}") for number in range(3)]
    stage.engine.let(2)
    stage.place.call()
    stage.until_said(*jobs)
    stage.place.client.publish(keys.control("echo@one"), "hand-over")
    for job in jobs:
        stage.place.until(job, JobState.QUEUED)
    assert not stage.place.client.exists(keys.running("echo"))


@pytest.mark.anyio
async def test_after_a_crash_each_is_alone(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """And only then its failures count."""
    store = JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)
    for number in range(3):
        request = CompletionRequest((f"item {number}",))
        await store.accept(new_job_id(), "echo", request, lane=Lane.BATCH, owner="")

    def take(beside: Claim | None = None) -> Claim:
        claim = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60, beside=beside)
        assert isinstance(claim, Claim)
        return claim

    def crashed(claim: Claim) -> HandedBack:
        return hand_back(client, "echo", claim.job, claim.token, "it vanished", crashed=True)

    lead = take()
    other = take(beside=lead)
    assert lead.kin == other.kin != ""
    assert crashed(lead) is crashed(other) is HandedBack.WAITING
    for claim in (lead, other):
        assert client.hmget(keys.job(claim.job), "failures", "alone", "together") == [None, b"1", None]
        assert (await store.view(claim.job)).interruptions == ("it vanished",)
    alone = take()
    assert (alone.job, alone.kin) == (lead.job, "")
    third = take(beside=lead)
    assert third.job not in (lead.job, other.job)
    assert claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60, beside=lead) is None
    crashed(alone)
    assert client.hget(keys.job(alone.job), "failures") == b"1"


@pytest.mark.anyio
async def test_nothing_is_taken_besides_while_a_chat_waits(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """It would wait for longer."""
    store = JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)
    request = CompletionRequest(("x",))
    for _ in range(2):
        await store.accept(new_job_id(), "echo", request, lane=Lane.BATCH, owner="")
    lead = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert isinstance(lead, Claim)
    await store.accept(new_job_id(), "echo", request, lane=Lane.INTERACTIVE, owner="")
    assert claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60, beside=lead) is None


def test_who_is_of_a_kin() -> None:
    """Requests that one run can answer: by the same sampling and adapter, about as long, and nothing that takes logits."""
    hello = (Message("user", "hello"),)
    plain = kin_of(ChatRequest(hello))
    assert plain == kin_of(ChatRequest((Message("user", "something else"),))) == kin_of(CompletionRequest(("x",)))
    assert kin_of(ChatRequest(hello, max_tokens=100)) == kin_of(ChatRequest(hello, max_tokens=120)) != plain
    warm = SamplingOptions(temperature=0.5)
    others = {
        kin_of(ChatRequest(hello, sampling=warm)),
        kin_of(ChatRequest(hello, adapter="pirate")),
        kin_of(ChatRequest(hello, max_tokens=1000)),
    }
    assert len(others | {plain}) == 4
    alone = (
        ChatRequest(hello, n=2),
        ChatRequest(hello, logprobs=1),
        ChatRequest(hello, tools=(Tool("f"),)),
        ChatRequest(hello, thinking_budget=5),
        ChatRequest(hello, sampling=SamplingOptions(seed=1)),
        ChatRequest(hello, sampling=SamplingOptions(min_p=0.1)),
        CompletionRequest(("a", "b")),
        EmbedRequest(("a",)),
    )
    assert [kin_of(request) for request in alone] == [None] * len(alone)


def test_a_defect_beside_holds_nobody_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that wait for it at the table, nor the next job; nobody renews its lease any more."""
    jobs = [stage.accept(f"item {number}") for number in range(3)]
    real = serving.EventWriter

    def writer(client: redis.Redis, job: str, *more: Any, **fields: Any) -> EventWriter:
        if job == jobs[1]:
            raise ZeroDivisionError("a defect")
        return real(client, job, *more, **fields)

    monkeypatch.setattr(serving, "EventWriter", writer)
    stage.engine.let()
    stage.place.call().join(LIMIT)
    assert stage.finished(jobs[0], jobs[2]) == ["item 0", "item 2"]
    assert stage.engine.runs == [["item 0", "item 2"]]
    assert stage.place.view(jobs[1]).state is JobState.RUNNING and stage.place.serving._runs == ()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_of_the_first_leaves_the_engine_to_the_others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next job begins when they have ended."""
    jobs = [stage.accept(f"item {number}") for number in range(2)]
    real = Serving._answer

    def answer(self: Serving, run: JobRun, call: str) -> Any:
        found = real(self, run, call)
        if run.claim.job == jobs[0]:
            raise ZeroDivisionError("a defect")
        return found

    monkeypatch.setattr(Serving, "_answer", answer)
    stage.engine.let(3)
    thread = stage.place.call()
    stage.until_said(*jobs)
    stage.place.cancel(jobs[0])
    eventually(lambda: len(stage.place.serving._runs) == 1, what="the end of the first")
    assert thread.is_alive()
    stage.engine.let()
    thread.join(LIMIT)
    assert stage.finished(jobs[1]) == ["item 1"]


class Abortable(ScriptedGeneration):
    """Knows whether it was aborted."""

    @property
    def aborted(self) -> bool:
        return self._aborted.is_set()


class Set(Choir):
    """Prepares runs that nobody iterates."""

    def __init__(self) -> None:
        super().__init__()
        self.defect: Exception | None = None

    def generate_together(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[ScriptedGeneration]:
        if self.defect is not None:
            raise self.defect
        return [Abortable(prompt, lambda aborted: iter(())) for prompt in prompts]


def joined(table: Table, seats: Sequence[Seat]) -> list[Any]:
    """What each is given, asked for at the same time."""
    given: dict[Seat, Any] = {}

    def ask(seat: Seat) -> None:
        try:
            given[seat] = seat.generate(Prompt((1,), 5), Sampling())
        except Exception as error:
            given[seat] = error
            seat.close()

    threads = [threading.Thread(target=ask, args=(seat,)) for seat in seats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "it waits for ever"
    return [given[seat] for seat in seats]


def test_a_run_that_its_job_never_began_is_aborted() -> None:
    """It was cancelled in between: an engine ends a shared run with the last of its slots."""
    table = Table(Set())
    seats = [table.seat(lambda: False) for _ in range(2)]
    runs = joined(table, seats)
    seats[0].close()
    assert [run.aborted for run in runs] == [True, False]


def test_a_defect_at_the_table_is_one_jobs_alone() -> None:
    """One after another is told; nobody waits for those that are gone."""
    engine = Set()
    engine.defect = ZeroDivisionError("a defect")
    table = Table(engine)
    found = joined(table, [table.seat(lambda: False) for _ in range(3)])
    assert [type(each) for each in found] == [ZeroDivisionError] * 3


def test_waiting_for_others_is_no_standstill(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they take."""
    place = make()
    monkeypatch.setattr(job_run, "time", clock := Clock())
    place.accept()
    claim = claim_next(place.client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert isinstance(claim, Claim)
    run = JobRun(claim, WorkerSettings(prefill_stall=60), 10**6)
    run.writer = SimpleNamespace(waits=False)  # type: ignore[assignment]
    run.enter(Phase.PREFILL)
    run.seat = Table(Set()).seat(lambda: False)
    for waits in (True, False):
        run.seat.waits = waits
        clock.now += 61
        assert (run.stalled is None) is waits


@pytest.mark.anyio
async def test_one_that_was_passed_over_can_still_be_cancelled(
    client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """Those of another kin were taken past it, and its owner's turn was forgotten with theirs."""
    store = JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600)

    async def accept(owner: str, temperature: float) -> str:
        job = new_job_id()
        request = CompletionRequest(("x",), sampling=SamplingOptions(temperature=temperature))
        await store.accept(job, "echo", request, lane=Lane.BATCH, owner=owner)
        return job

    first = [await accept("a", 0.0) for _ in range(4)]
    other = await accept("b", 1.0)
    lead = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
    assert isinstance(lead, Claim) and lead.job == first[0]
    for _ in range(3):
        beside = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60, beside=lead)
        assert isinstance(beside, Claim)
    await store.cancel(other, "test")
    assert (await store.view(other)).state is JobState.CANCELLED
