"""What jobs wait for and nobody serves is loaded by one board, or the jobs hear why not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from npu.catalog import Catalog
from npu.errors import ModelRefused, OutOfMemory
from npu.model import Model
from tasks import keys, presence, roster
from tasks.board.demand import Demand
from tasks.board.room import MakingRoom, NoRoomYet
from tasks.card import Card
from tasks.connection import connect_async
from tasks.events import FailureCode
from tasks.jobs import JobState, JobView, Lane, new_job_id
from tasks.presence import Presence
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore

HELLO = ChatRequest((Message("user", "hello"),))

pytestmark = pytest.mark.usefixtures("standing")


class Rack:
    """Boards that have the model `echo`, and what each of them does about jobs for it."""

    def __init__(self, client: redis.Redis, url: str, *boards: str) -> None:
        self.client = client
        self.url = url
        self.loaded: list[str] = []
        self.trouble: dict[str, Exception] = {}
        self.workers: set[str] = set()
        self.now = 1000.0
        self.leaving: set[str] = set()
        """Models that are being unloaded."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens while a board tries to load."""
        self.boards = {board: self._board(board) for board in boards}

    def _board(self, board: str) -> Demand:
        roster.announce(self.client, Card(id="echo", board=board))
        presence.breathe(self.client, Presence(name=f"board:{board}", board=board))

        def load(model: Model, waited: float | None = None) -> None:
            self.loaded.append(board)
            self.meanwhile()
            if board in self.trouble:
                raise self.trouble[board]
            self.workers.add(board)

        catalog = Catalog((Model(id="echo", engine="echo", folder=Path()),))
        return Demand(
            *(self.client, board, lambda: catalog, lambda _: board in self.workers, lambda: set(self.leaving)),
            *(load, load, 600.0, lambda: self.now),
        )

    def look(self) -> list[str]:
        """Every board looks once; who has tried to load since the last time."""
        for demand in self.boards.values():
            demand.meet()
        loaded, self.loaded = self.loaded, []
        return loaded

    def store(self, do: Callable[[JobStore], object]) -> object:
        async def run() -> object:
            aclient = connect_async(self.url)
            try:
                return await do(JobStore(aclient, queue_limit=20, job_ttl=60, deadline=600))  # type: ignore[misc]
            finally:
                await aclient.aclose()

        return asyncio.run(run())

    def accept(self) -> str:
        job = new_job_id()
        self.store(lambda store: store.accept(job, "echo", HELLO, lane=Lane.INTERACTIVE, owner=""))
        return job

    def view(self, job: str) -> JobView:
        found = self.store(lambda store: store.view(job))
        assert isinstance(found, JobView)
        return found


def test_one_board_loads_what_jobs_wait_for(client: redis.Redis, valkey_url: str) -> None:
    """The first in line, once, then the next; nobody while no job waits, and nobody once a worker breathes."""
    rack = Rack(client, valkey_url, "a", "b")
    assert rack.look() == []
    rack.accept()
    assert rack.look() == ["a"]
    assert rack.look() == ["b"]  # for the worker of the first, which is there, does not breathe yet
    presence.breathe(client, Presence(name="echo@a", board="a", model="echo", state="loading"))
    rack.workers.clear()
    assert [rack.look() for _ in range(3)] == [[], [], []]


def test_boards_help_where_many_jobs_wait(client: redis.Redis, valkey_url: str) -> None:
    """One more with each look from the second on, for as long as there are too many for those that serve; one that has no
    room lets the others go on."""
    rack = Rack(client, valkey_url, "a", "b", "c")
    presence.breathe(client, Presence(name="echo@a", board="a", model="echo", state="busy"))
    rack.workers.add("a")
    for _ in range(4):
        rack.accept()
    assert [rack.look() for _ in range(4)] == [[], [], [], []]
    job = rack.accept()
    rack.trouble["b"] = OutOfMemory("no room")
    assert [rack.look() for _ in range(4)] == [[], [], ["b"], ["b", "c"]]
    presence.breathe(client, Presence(name="echo@c", board="c", model="echo", state="loading"))
    assert [rack.look() for _ in range(3)] == [[], [], []]
    assert rack.view(job).state is JobState.QUEUED


def test_another_board_loads_it_when_the_first_cannot(client: redis.Redis, valkey_url: str) -> None:
    """By turns, each after the one before it had its chance; its clients never know."""
    rack = Rack(client, valkey_url, "a", "b", "c")
    rack.trouble = {"a": OutOfMemory("no room"), "b": OSError(5, "Input/output error")}
    job = rack.accept()
    assert [rack.look() for _ in range(3)] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert rack.workers == {"c"}
    assert rack.view(job).state is JobState.QUEUED


@pytest.mark.parametrize("trouble", [OutOfMemory("no room"), ModelRefused("damaged")], ids=["no room", "damaged"])
def test_what_no_board_can_load_is_told(client: redis.Redis, valkey_url: str, trouble: ModelRefused) -> None:
    """By the last in line, to all that wait, with its reason; the queue is empty then."""
    rack = Rack(client, valkey_url, "a", "b")
    rack.trouble = dict.fromkeys("ab", trouble)
    jobs = [rack.accept(), rack.accept()]
    assert rack.look() == ["a"]
    assert [rack.view(job).state for job in jobs] == [JobState.QUEUED] * 2
    rack.leaving.add("another")  # it still has the memory that this one would get
    assert rack.look() == ["a", "b"]
    assert [rack.view(job).state for job in jobs] == [JobState.QUEUED] * 2
    rack.leaving.clear()
    assert rack.look() == ["a", "b"]
    for job in jobs:
        found = rack.view(job)
        assert found.error is not None
        assert (found.error.code, found.error.message) == (FailureCode.MODEL_UNAVAILABLE, str(trouble))
    assert client.zcard(keys.waiting("echo")) == 0
    assert rack.look() == []


def test_what_leaves_during_a_try_leaves_room_for_the_next(client: redis.Redis, valkey_url: str) -> None:
    """Nobody is told that there is none because it was looked for a moment too early."""
    rack = Rack(client, valkey_url, "a")
    rack.trouble["a"] = OutOfMemory("no room")
    job = rack.accept()
    rack.leaving.add("another")
    rack.meanwhile = rack.leaving.clear
    assert rack.look() == ["a"]
    assert rack.view(job).state is JobState.QUEUED
    assert rack.look() == ["a"]
    assert rack.view(job).state is JobState.FAILED


def test_who_comes_during_a_try_has_its_chance(client: redis.Redis, valkey_url: str) -> None:
    """Jobs are not failed that another board serves by now, or could load."""
    rack = Rack(client, valkey_url, "b")
    rack.trouble["b"] = OutOfMemory("no room")
    job = rack.accept()
    rack.meanwhile = lambda: presence.breathe(client, Presence(name="echo@a", board="a", model="echo", state="loading"))
    assert rack.look() == ["b"] and rack.view(job).state is JobState.QUEUED
    presence.leave(client, "echo@a")

    def joins() -> None:
        roster.announce(client, Card(id="echo", board="a"))
        presence.breathe(client, Presence(name="board:a", board="a"))

    rack.meanwhile = joins
    assert rack.look() == ["b"] and rack.view(job).state is JobState.QUEUED


def test_a_paused_queue_has_nothing_loaded(client: redis.Redis, valkey_url: str) -> None:
    """Its jobs could not begin; an administrator may have freed the memory on purpose."""
    rack = Rack(client, valkey_url, "a")
    rack.accept()
    client.hset(keys.GATES, "echo", "paused")
    assert rack.look() == []
    client.hset(keys.GATES, "echo", "draining")
    assert rack.look() == ["a"]


def test_jobs_wait_while_others_have_something_to_do(client: redis.Redis, valkey_url: str) -> None:
    """Not for ever: past the limit they are told the figures. The limit is that of one wait, and begins anew."""
    rack = Rack(client, valkey_url, "a")
    job = rack.accept()
    rack.trouble["a"] = MakingRoom("in a moment")
    rack.look()
    rack.now += 601
    rack.trouble["a"] = NoRoomYet("It needs 4096 MiB.")
    rack.look()
    rack.now += 599
    rack.look()
    assert rack.view(job).state is JobState.QUEUED
    assert rack.boards["a"].no_room == {"echo": "It needs 4096 MiB."}
    rack.now += 2
    rack.look()
    ended = rack.view(job)
    assert ended.state is JobState.FAILED
    assert rack.look() == [] and rack.boards["a"].no_room == {}
    second = rack.accept()
    rack.look()
    assert rack.view(second).state is JobState.QUEUED
