"""Models that nobody asks for are unloaded when their time is over, and no sooner."""

from __future__ import annotations

import msgspec
import pytest
import redis

from tasks import keys, presence, roster
from tasks.board.keeping import Keeping
from tasks.card import Card
from tasks.presence import Presence
from tasks.roster import read_roster

pytestmark = pytest.mark.usefixtures("standing")


class Shelf:
    """A board with one loaded model, and a clock that a test moves."""

    def __init__(self, client: redis.Redis, default: float) -> None:
        self.client = client
        self.now = 1000.0
        self.keeping = Keeping(client, "one", lambda: default, lambda: self.now)
        roster.announce(client, Card(id="echo", board="one"))
        self.breathe()

    def breathe(self, state: str = "loaded", answered: int | None = 1) -> None:
        """What its worker says of itself from now on."""
        worker = Presence(name="echo@one", board="one", model="echo", state=state, answered=answered)
        presence.breathe(self.client, worker)

    def over(self, seconds: float = 0.0) -> bool:
        """Whether its time is over, so much later."""
        self.now += seconds
        return self.keeping.over(["echo"]) == ["echo"]


@pytest.fixture
def shelf(client: redis.Redis) -> Shelf:
    return Shelf(client, 60.0)


def test_a_model_stays_as_long_as_the_setting_says(shelf: Shelf) -> None:
    """Counted from when it was first seen with nothing to do."""
    assert not shelf.over()
    assert not shelf.over(59)
    assert shelf.keeping.stays() == {"echo": pytest.approx(1)}
    assert shelf.over(2)


def test_who_wants_it_loaded_gives_it_its_time(shelf: Shelf) -> None:
    """Though it has rested for longer than that; and what was found over before is so no more."""
    assert not shelf.over() and shelf.over(100) and shelf.keeping.is_over("echo")
    shelf.keeping.wanted("echo")
    assert not shelf.keeping.is_over("echo")
    assert not shelf.over(59) and shelf.over(2)
    shelf.keeping.ask("echo", 30.0)
    assert not shelf.over(29) and shelf.over(2)


def test_below_zero_is_for_ever(client: redis.Redis) -> None:
    """Nothing is said of such a model's end."""
    shelf = Shelf(client, -1.0)
    assert not shelf.over() and not shelf.over(1e9)
    assert shelf.keeping.stays() == {}


def test_of_two_workers_both_have_to_rest(shelf: Shelf, client: redis.Redis) -> None:
    """And what either has answered counts."""
    second = Presence(name="echo#2@one", board="one", model="echo", state="busy", answered=0)
    presence.breathe(client, second)
    assert not shelf.over() and not shelf.over(1000)
    assert shelf.keeping.resting(["echo"]) == []
    presence.breathe(client, msgspec.structs.replace(second, state="loaded", answered=1))
    assert not shelf.over()
    assert shelf.keeping.resting(["echo"]) == ["echo"]
    presence.breathe(client, msgspec.structs.replace(second, state="loaded", answered=2))
    assert not shelf.over(61) and shelf.over(61)


def test_what_the_manifest_pins_stays_whatever_is_asked(client: redis.Redis) -> None:
    """And is told among the pinned."""
    shelf = Shelf(client, 60.0)
    shelf.keeping._always = lambda: {"echo"}
    shelf.keeping.ask("echo", 0.0)
    assert not shelf.over() and not shelf.over(1e9)
    assert shelf.keeping.stays() == {}
    assert shelf.keeping.pinned() == {"echo"}


def test_what_a_request_asks_for_counts_until_it_is_unloaded(shelf: Shelf) -> None:
    """Longer, shorter, for ever, or only for one job."""
    shelf.over()
    shelf.keeping.ask("echo", 600.0)
    assert not shelf.over(100)
    shelf.keeping.ask("echo", -1.0)
    assert not shelf.over(1e6)
    shelf.keeping.ask("echo", 0.0)
    assert shelf.over()
    shelf.keeping.forget("echo")
    assert not shelf.over() and not shelf.over(59) and shelf.over(1)


@pytest.mark.parametrize("what", ["waiting", "running", "busy", "loading", "gone"])
def test_a_model_that_has_something_to_do_stays(shelf: Shelf, client: redis.Redis, what: str) -> None:
    """Also one whose worker has not yet said so; and its time begins anew after that."""
    shelf.over()
    if what == "waiting":
        client.zadd(keys.waiting("echo"), {"j": 1})
    elif what == "running":
        client.zadd(keys.running("echo"), {"j": 10**15})
    elif what == "gone":
        presence.leave(client, "echo@one")
    else:
        shelf.breathe(what)
    shelf.keeping.ask("echo", 0.0)
    assert not shelf.over(1000)
    shelf.keeping.ask("echo", 60.0)
    client.delete(keys.waiting("echo"), keys.running("echo"))
    shelf.breathe()
    assert not shelf.over()
    assert not shelf.over(59)
    assert shelf.over(1)


def test_a_job_between_two_looks_counts(shelf: Shelf) -> None:
    """The worker has answered one more call."""
    shelf.over()
    shelf.breathe(answered=2)
    assert not shelf.over(1000)
    assert shelf.over(60)


def test_after_its_job_means_at_once(shelf: Shelf) -> None:
    """Even when that is the first that is seen of it."""
    shelf.over()
    shelf.keeping.ask("echo", 0.0)
    shelf.breathe(answered=2)
    assert shelf.over()


def test_when_it_goes_is_told_with_the_board_s_breath(shelf: Shelf, client: redis.Redis) -> None:
    """Where it stays for ever on one board, it stays."""

    def stays() -> float | None:
        [status] = read_roster(client).models
        return status.stays

    presence.breathe(client, Presence(name="board:one", board="one", stays={"echo": 30.0}))
    assert stays() == 30.0
    presence.breathe(client, Presence(name="echo@two", board="two", model="echo", state="loaded"))
    presence.breathe(client, Presence(name="board:two", board="two"))
    assert stays() is None
    presence.breathe(client, Presence(name="board:two", board="two", stays={"echo": 300.0}))
    assert stays() == 300.0
