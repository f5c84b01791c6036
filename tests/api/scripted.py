"""An answer and a relay that do what a test has written down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.requests import Request as HttpRequest

from api.answer import Answer, ClientGone, Stopped, Waiting
from api.relay import Relay
from tasks.card import Card
from tasks.errors import JobCancelled, JobFailed, JobNotFound
from tasks.events import (
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Mark,
    Numbered,
    Queued,
    Started,
    TextDelta,
    Timings,
    Usage,
)
from tasks.jobs import Kept, Lane, Once, Rendering, Room
from tasks.limits import Allowance, Bucket, Limits
from tasks.requests import Request
from tasks.roster import ModelStatus
from tasks.store import Attended
from tests.stack import LIMIT, eventually

JOB = "abcdefghijklmnopqrstuv"
USAGE = Usage(prompt_tokens=12, completion_tokens=3, cached_tokens=4)
TIMINGS = Timings(queued_ms=1.5, load_ms=0.0, prefill_ms=20.0, decode_ms=60.0)
END = Finished(FinishReason.STOP, USAGE, TIMINGS)
CANCELLED = Finished(FinishReason.CANCELLED, USAGE, TIMINGS)
CARD = Card(
    id="tiny",
    board="b",
    names=("tiny:latest", "org/tiny"),
    engine="echo",
    engine_version="1",
    context_length=2048,
    created=1700000000,
    size_bytes=1000,
    family="echo",
    parameters="1M",
    quantization="none",
)
TINY = ModelStatus(card=CARD, served=True, loaded=True, loading=False, waiting=0)


class Hold:
    """A step of a script: silence until the answer is stopped or closed."""


class FirstHolds:
    """A first step: no event decides a status, until the answer is stopped or closed."""


class StartHolds:
    """A first step: `Relay.start` itself does not return."""


Step: TypeAlias = Event | Waiting | Exception | Hold | FirstHolds | StartHolds


def hello(choice: int = 0, reason: FinishReason = FinishReason.STOP) -> list[Step]:
    """A short answer."""
    return [
        Queued(),
        Started("w", "b"),
        TextDelta("Hel", choice),
        TextDelta("lo", choice),
        ChoiceEnded(choice, reason),
        END,
    ]


class ScriptedAnswer(Answer):
    """Plays a script. `closed` is set once somebody has closed it, however often."""

    def __init__(self, model: str, script: list[Step], waiting: Waiting | None = None) -> None:
        self.known = False
        self.rendering: Rendering | None = None
        self.grace = 0.0
        self.job = JOB
        self.model = model
        self.waiting = waiting
        self.tools_left_out = 0
        self.room = Room(limit=64, left=61, empty_in=6.25)
        self.allowance: Allowance | None = None
        self.script = script
        self.reached = threading.Event()
        self.closed = threading.Event()
        self._closing = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Numbered | Waiting]:
        seq = 0
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Hold):
                self.reached.set()
                await self._closing.wait()
                raise Stopped
            assert not isinstance(step, FirstHolds | StartHolds)
            if isinstance(step, Waiting):
                yield step
            else:
                seq += 1
                yield Numbered(seq, step)

    async def first(self) -> None:
        if self.script and isinstance(self.script[0], FirstHolds):
            self.reached.set()
            await self._closing.wait()
            raise Stopped
        decides = (step for step in self.script if not isinstance(step, Queued | Started | Waiting))
        match next(decides, None):
            case Failed() as failed:
                raise JobFailed(self.job, failed)
            case Finished(reason=FinishReason.CANCELLED):
                raise JobCancelled(self.job)

    async def events(self, http: HttpRequest) -> list[Event]:
        collecting = asyncio.ensure_future(self._collect())
        leaving = asyncio.ensure_future(_left(http))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                await self.close()
                raise ClientGone
            return collecting.result()
        finally:
            collecting.cancel()
            leaving.cancel()

    async def _collect(self) -> list[Event]:
        return [item.event async for item in self if not isinstance(item, Waiting)]

    def stop(self) -> None:
        self._closing.set()

    async def close(self) -> None:
        self._closing.set()
        self.closed.set()


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


@dataclass
class Asked:
    """One call of `Relay.start`."""

    model: str | None
    request: Request
    owner: str
    lane: Lane
    grace: float
    kept: Kept | None
    attended: bool
    webhook: str | None
    once: Once | None
    limits: Limits | None


class ScriptedRelay(Relay):
    """Answers each request with the script that was set, and remembers what it was asked."""

    def __init__(self) -> None:
        self.script: list[Step] = hello()
        self.speaker: Callable[[Request], Iterable[Event]] | None = None
        self.refusal: Exception | None = None
        self.waiting: Waiting | None = None
        self.rendering: Rendering | None = None
        self.read: Mark | None = None
        self.calls: list[Asked] = []
        self.told: list[tuple[Any, ...]] = []
        """What boards were told to do, in words."""
        self.answers: list[ScriptedAnswer] = []
        self.holding = threading.Event()
        self.start_cancelled = threading.Event()
        self.answered = threading.Semaphore(0)

    def play(self, *script: Step, waiting: Waiting | None = None) -> None:
        """Answer with this script from now on."""
        self.script = list(script)
        self.speaker = None
        self.refusal = None
        self.waiting = waiting
        self.calls.clear()
        self.told.clear()
        self.answers.clear()
        self.answered = threading.Semaphore(0)
        self.holding.clear()
        self.start_cancelled.clear()

    def speak(self, speaker: Callable[[Request], Iterable[Event]]) -> None:
        """Answer each request with what `speaker` makes of it from now on."""
        self.play()
        self.speaker = speaker

    def refuse(self, error: Exception) -> None:
        """Refuse with this error from now on."""
        self.play()
        self.refusal = error

    def answer(self) -> ScriptedAnswer:
        """The next answer that was begun, waited for."""
        assert self.answered.acquire(timeout=LIMIT), "no request reached the relay"
        return self.answers[-1]

    def begun(self, ask: Callable[[], object]) -> ScriptedAnswer:
        """The answer that `ask` begins, whose client soon gives up: again where a slow machine had not read it by then."""

        def answers() -> list[ScriptedAnswer]:
            ask()
            return self.answers

        return eventually(answers, what="a request that is read")[-1]

    async def start(
        self,
        model: str | None,
        request: Request,
        *,
        owner: str = "",
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
        grace: float = 0.0,
        rendering: Callable[[str, ModelStatus], Rendering] | None = None,
        kept: Kept | None = None,
        attended: bool = True,
        webhook: str | None = None,
        once: Once | None = None,
        limits: Limits | None = None,
        for_model: Callable[[ModelStatus, Request], Request] | None = None,
    ) -> Answer:
        if for_model is not None:
            request = for_model(TINY, request)
        self.calls.append(Asked(model, request, owner, lane, grace, kept, attended, webhook, once, limits))
        if self.refusal is not None:
            raise self.refusal
        if self.script and isinstance(self.script[0], StartHolds):
            try:
                self.holding.set()
                await asyncio.Event().wait()
            finally:
                self.start_cancelled.set()
        script: list[Step] = list(self.script)
        if self.speaker is not None:
            script = [*await asyncio.to_thread(list, self.speaker(request))]
        answer = ScriptedAnswer("tiny", script, self.waiting)
        answer.grace = grace
        if limits is not None and limits.requests is not None:
            answer.allowance = Allowance(Bucket(limits.requests, limits.requests - 1, 1.0), None)
        if rendering is not None:
            answer.rendering = self.rendering = rendering(JOB, TINY)
        self.answers.append(answer)
        self.answered.release()
        return answer

    async def load(self, status: ModelStatus) -> None:
        self.told.append(("load", status.card.id))

    def keep(self, status: ModelStatus, seconds: float) -> None:
        self.told.append(("keep", status.card.id, seconds))

    async def unload(self, model: str) -> None:
        self.told.append(("unload", model))

    async def resume(self, job: str, read: Mark | None = None) -> tuple[Answer, Attended]:
        if job != JOB:
            raise JobNotFound(job)
        self.read = read
        answer = ScriptedAnswer("tiny", list(self.script))
        answer.known = True
        answer.rendering = self.rendering
        self.answers.append(answer)
        self.answered.release()
        seq = sum(not isinstance(step, Waiting | Hold) for step in self.script)
        return answer, Attended("tiny", "tiny", Mark(seq, 0), END in self.script, 0.0, self.rendering)
