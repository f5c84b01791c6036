"""A job that is moved: read on the board that it goes to, while it is still said on the one that it leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from npu.engine import Prompt, Sampling
from npu.engines.echo import EchoEngine, EchoGeneration
from npu.errors import EngineFailed
from tasks import keys
from tasks.account import account
from tasks.jobs import JobState
from tasks.presence import Presence, breathe
from tests.stack import LIMIT, eventually
from tests.tasks.worker.place import Make, Place

TEXT = "-".join(f"word{number}" for number in range(100))


class Reader(EchoEngine):
    """Reads a prompt when it is let, and says of each how much of it was there already."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.model)
        self.reads, self.let = threading.Event(), threading.Event()
        self.there: list[int] = []
        self.broken = False

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> EchoGeneration:
        self.there.append(self.reuse(tuple(prompt.tokens)))
        made = super().generate(prompt, sampling, lambda _: self._wait(made))
        return made

    def _wait(self, made: EchoGeneration) -> None:
        self.reads.set()
        while not self.let.wait(0.01) and not made._aborted.is_set():
            pass
        if self.broken:
            raise EngineFailed("it broke on purpose")


class Move:
    """An answer that board one is in the middle of, and board two with the same model and nothing to do."""

    def __init__(self, make: Make) -> None:
        self.one = make()
        self.one.model = replace(self.one.model, engine_options={"tokens_per_second": 50.0})
        self._load(self.one)
        self.two = make(board="two")
        self.reader = Reader(self.two)
        self.two.engine = lambda: self.reader
        self._load(self.two)
        self.job = self.one.accept(TEXT)
        self.one.call()
        eventually(lambda: self.said() > 10, what="a part of the answer")

    def _load(self, place: Place) -> None:
        board = place.worker.partition("@")[2]
        breathe(place.client, Presence(name=f"board:{board}", board=board))
        place.client.publish(keys.control(place.worker), "load")
        state = lambda: b'"loaded"' in (place.client.hget(keys.PRESENCE, place.worker) or b"")  # noqa: E731
        eventually(state, what="a loaded model that others know of")

    def said(self) -> int:
        return self.one.view(self.job).events

    def begin(self) -> None:
        """Tell board one that it is drained, while board two is there, if it is."""
        if self.two.client.hexists(keys.PRESENCE, "board:two"):
            breathe(self.two.client, Presence(name="board:two", board="two"))
        self.one.client.publish(keys.control(self.one.worker), "move")

    def until_let_go(self) -> None:
        self.one.until(self.job, JobState.QUEUED)

    def end(self) -> None:
        """Have board two say the rest."""
        self.reader.let.set()
        self.two.call()
        assert self.one.until(self.job, JobState.FINISHED).board == "two"
        assert self.one.text(self.job) == TEXT


@pytest.fixture
def move(make: Make) -> Move:
    return Move(make)


def test_it_is_said_here_until_it_was_read_there(move: Move) -> None:
    """Then the other board goes on with what was said meanwhile, and nothing else is to be read."""
    move.begin()
    assert move.reader.reads.wait(LIMIT)
    said = move.said()
    eventually(lambda: move.said() > said + 10, what="more of it")
    assert move.one.view(move.job).state is JobState.RUNNING
    move.reader.let.set()
    move.until_let_go()
    assert move.one.client.hget(keys.job(move.job), "goes_to") == b"two"
    move.end()
    first, second = move.reader.there
    assert first < len(TEXT) < second
    assert move.one.client.hget(keys.job(move.job), "goes_to") is None
    told = move.one.view(move.job)
    assert [claim.goes_to for claim in told.claims] == ["two"]
    parts = account(told)
    assert [part.kind.value for part in parts[1:2] + parts[-1:]] == ["handed_over", "publish"]
    assert told.ended_at is not None
    wall = (told.ended_at - told.created_at) * 1000
    assert abs(sum(part.ms for part in parts) - wall) <= wall / 100


def test_a_word_for_a_predecessor_stops_nobody(make: Make) -> None:
    """A board that was resumed soon has another worker of the same name when the reading ends."""
    place = make()
    with place.client.pubsub(ignore_subscribe_messages=True) as control:
        control.subscribe(keys.control(place.worker))
        # Nothing is loaded here, so it answers at once that it does not read.
        place.client.publish(keys.control(place.worker), f"read-ahead gone {place.worker}")
        words = [eventually(lambda: control.get_message(timeout=0.1), what="a word")["data"] for _ in range(2)]
    assert len(words) == 2
    place.client.publish(keys.control(place.worker), "load")  # heard after it
    eventually(lambda: place.loaded == 1, what="a loaded model")
    job = place.accept()
    place.call()
    place.until(job, JobState.FINISHED)


@pytest.mark.full
def test_a_board_at_work_reads_nothing_ahead(move: Move) -> None:
    """The job is let go of at once, and waits for its turn there."""
    other = move.two.accept("something else")
    move.two.call()
    assert move.reader.reads.wait(LIMIT)
    move.begin()
    move.until_let_go()
    move.reader.let.set()
    move.two.until(other, JobState.FINISHED)
    move.end()
    assert len(move.reader.there) == 2


@pytest.mark.full
def test_a_chat_does_not_wait_for_what_is_read_ahead(move: Move) -> None:
    """That is left off, and the job let go of: whoever has it next reads it."""
    move.begin()
    assert move.reader.reads.wait(LIMIT)
    chat = move.two.accept("in between")
    move.two.call()
    move.until_let_go()
    move.reader.let.set()
    move.two.until(chat, JobState.FINISHED)
    move.end()


@pytest.mark.full
def test_an_engine_that_breaks_over_it_costs_the_job_nothing(move: Move) -> None:
    """The other board has lost no claim, so nothing counts against the job; its engine is opened anew."""
    move.reader.broken = True
    move.begin()
    assert move.reader.reads.wait(LIMIT)
    move.reader.let.set()
    move.until_let_go()
    move.reader = Reader(move.two)
    move.end()
    assert move.two.loaded == 2
    assert move.one.client.hget(keys.job(move.job), "failures") is None


@pytest.mark.full
def test_a_worker_that_nobody_can_follow_lets_go_at_once(move: Move) -> None:
    """Where no other worker is loaded and free, nothing is gained by waiting."""
    move.two.client.hdel(keys.PRESENCE, "board:two")
    move.begin()
    move.until_let_go()
    assert not move.reader.there
    move.end()
