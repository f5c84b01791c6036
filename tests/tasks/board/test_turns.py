"""Models of which each always has something to do take turns."""

from __future__ import annotations

import pytest
import redis

from npu.errors import OutOfMemory
from tasks import keys, presence, roster
from tasks.card import Card
from tasks.presence import Presence
from tests.tasks.board.small_board import GIB, Board


@pytest.mark.parametrize("domains", [(0,)])
def test_where_there_is_one_domain_for_all_they_take_turns(board: Board) -> None:
    """Though there would be memory for both. What is pinned is named in the refusal, which has the figures."""
    board.has("large")
    with pytest.raises(
        OutOfMemory, match=r"1024 MiB.* holds 4096 MiB, and there is no such room in domain 0 beside large"
    ):
        board.agent._loading.load(board.models["small"])
    board.agent._loading.load_after_others(board.models["small"])
    assert board.loaded() == {"small"}
    board.agent._keeping.ask("small", -1.0)
    with pytest.raises(OutOfMemory, match=r"domain 0 beside small.* Asked to stay for ever: small"):
        board.agent._loading.load_after_others(board.models["large"])


@pytest.fixture
def busy(board: Board) -> Board:
    """A board with one model that always has a job that runs and one that waits, and a chat for another one."""
    board.has("large")
    board.job("large", "running")
    board.job("large", "waiting")
    board.breathe("large", "busy")
    board.job("huge", "waiting")
    return board


def test_a_model_that_always_has_something_to_do_gives_way_after_a_while(busy: Board, client: redis.Redis) -> None:
    """Its job in hand may end first. The other one is loaded next, whoever asks; then they take turns."""
    with client.pubsub(ignore_subscribe_messages=True) as control:
        control.subscribe(keys.control("large@one"))
        busy.agent._meet()
        busy.later(59)
        busy.agent._meet()
        assert busy.loaded() == {"large"}
        busy.later(2)
        busy.agent._meet()
        told = next(filter(None, iter(lambda: control.get_message(timeout=1.0), "")))
    assert told["data"] == b"finish 539"  # of the ten minutes that jobs can wait
    busy.gone()
    presence.leave(client, "large@one")
    busy.agent._loading.load_after_others(busy.models["large"])  # asked for again, it waits
    busy.agent._meet()
    assert busy.loaded() == {"huge"}
    busy.breathe("huge", "busy")
    busy.job("huge", "running")
    busy.agent._meet()
    busy.agent._demand._waits["large"] -= 50  # it has waited for longer than the other has been there
    busy.later(59)
    busy.agent._meet()
    assert busy.loaded() == {"huge"}
    busy.later(2)
    busy.agent._meet()
    busy.gone()
    presence.leave(client, "huge@one")
    busy.agent._meet()
    assert busy.loaded() == {"large"}


@pytest.mark.parametrize(("lane", "gives_way"), [("background", True), ("batch", True), ("interactive", False)])
def test_chats_wait_for_no_jobs_of_later_lanes(busy: Board, client: redis.Redis, lane: str, gives_way: bool) -> None:
    """Theirs goes on later. Nobody makes way for jobs of a lane that is later than its own."""
    busy.jobs_gone("large")
    busy.job("large", "running", lane)
    busy.agent._meet()
    busy.gone()
    assert busy.loaded() == (set() if gives_way else {"large"})
    if not gives_way:
        busy.jobs_gone("huge")
        busy.job("huge", "waiting", "batch")
        busy.later(599)
        busy.agent._meet()
        assert busy.loaded() == {"large"}


@pytest.mark.parametrize("why", ["paused", "failed"])
def test_a_model_that_answers_nobody_keeps_no_room(busy: Board, client: redis.Redis, why: str) -> None:
    """Jobs wait for it whose queue is paused, or it could not be loaded, and its worker is there all the same."""
    client.delete(keys.running("large"))
    if why == "paused":
        client.hset(keys.GATES, "large", "paused")
        busy.breathe("large")
    else:
        busy.jobs_gone("large")
        worker = Presence(name="large@one", board="one", model="large", state="idle", tries=1, problem="it is damaged")
        presence.breathe(client, worker)
    busy.agent._meet()
    busy.gone()
    busy.agent._meet()
    assert busy.loaded() == {"huge"}


def test_who_is_paused_with_a_job_in_hand_gives_way_by_that_alone(busy: Board, client: redis.Redis) -> None:
    """The chats that wait behind it do not count: they wait for more than this."""
    client.delete(keys.running("large"))
    busy.job("large", "running", "batch")
    busy.agent._meet()
    assert busy.loaded() == {"large"}
    client.hset(keys.GATES, "large", "paused")
    busy.agent._meet()
    busy.gone()
    assert busy.loaded() == set()


@pytest.mark.parametrize("why", ["pinned", "loading", "elsewhere"])
def test_who_never_gives_way(busy: Board, client: redis.Redis, why: str) -> None:
    """What is pinned, what is only being loaded, and anybody while another board may have room."""
    if why == "pinned":
        busy.agent._keeping.ask("large", -1.0)
    elif why == "loading":
        busy.breathe("large", "loading")
    else:
        roster.announce(client, Card(id="huge", board="two"))
        presence.breathe(client, Presence(name="board:two", board="two"))
    busy.agent._demand._refuse = lambda *_: None  # type: ignore[method-assign]
    for _ in range(3):
        busy.later(100)
        busy.agent._meet()
    assert busy.loaded() == {"large"}


def test_who_gave_way_comes_back_when_nobody_wants_the_room(busy: Board, client: redis.Redis) -> None:
    """The jobs that wanted it were cancelled meanwhile."""
    busy.agent._meet()
    busy.later(61)
    busy.agent._meet()
    busy.gone()
    presence.leave(client, "large@one")
    busy.jobs_gone("huge")
    busy.agent._meet()
    busy.agent._meet()
    assert busy.loaded() == {"large"}


def test_a_pinned_model_gives_no_way(board: Board) -> None:
    """Though it is asked to, as busy models are."""
    board.has("large", "middle")
    board.agent._keeping.ask("large", -1.0)
    for name in ("large", "middle"):
        board.breathe(name, "busy")
    giving_way = ["large", "middle"]
    assert board.agent._room.in_the_way(board.models["middle"], 2 * GIB, giving_way=giving_way) == ["middle"]
