"""Models that are loaded, kept and unloaded at once: what one has seen holds until it has acted upon it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
import redis

from npu.errors import ModelRefused
from npu.model import LoadWhen
from tasks import keys
from tasks.board import loading
from tests.stack import LIMIT
from tests.tasks.board.small_board import Board

Meanwhile = Callable[[object, str, Callable[[], None]], Callable[[], None]]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meanwhile]:
    """Have another thread do something right behind the first call of a function, whose caller goes on when that is done, or
    has to wait for it itself. What is returned waits until it is done."""
    begun: list[Future[None]] = []
    with ThreadPoolExecutor(1) as pool:

        def behind(owner: object, name: str, do: Callable[[], None]) -> Callable[[], None]:
            called = getattr(owner, name)

            def and_then(*words: object, **more: object) -> object:
                found = called(*words, **more)
                if not begun:
                    begun.append(pool.submit(do))
                    wait(begun, timeout=0.2)
                return found

            monkeypatch.setattr(owner, name, and_then)
            return lambda: begun[0].result(LIMIT)

        yield behind


@pytest.mark.parametrize("step", ["the first worker", "the look for room for a second"])
def test_what_is_unloaded_while_it_is_loaded_is_gone(board: Board, meanwhile: Meanwhile, step: str) -> None:
    """All of its workers; nor is anybody still to be told to load, for whom no other model would be parked."""
    agent, model = board.agent, replace(board.models["small"], instances=2)
    owner, name = (agent._workers, "start") if step == "the first worker" else (agent._room, "fits")
    if name == "fits":
        board.has("small")
    is_done = meanwhile(owner, name, lambda: agent._loading.unload(model))
    agent._loading.load(model)
    is_done()
    assert board.loaded() == set() and not agent._loading._to_load


def test_a_request_does_not_load_what_is_unloaded_by_hand(board: Board, meanwhile: Meanwhile) -> None:
    """Though it was there when the request came."""
    manual = replace(board.models["small"], load=LoadWhen.MANUAL)
    board.agent._loading.load_after_others(manual, by_hand=True)
    is_done = meanwhile(loading, "describe", lambda: board.agent._loading.unload(manual))
    with pytest.raises(ModelRefused, match="requests do not load it"):
        board.agent._loading.load_after_others(manual)
    is_done()
    assert board.loaded() == set()


def test_a_board_that_is_to_be_drained_loads_nothing(board: Board, client: redis.Redis) -> None:
    """Also before it has looked: who asked for the model would be told that it is there."""
    client.hset(keys.DRAINED, "one", "0")
    with pytest.raises(ModelRefused, match="drained"):
        board.agent._loading.load_after_others(board.models["small"], by_hand=True)
    assert not board.agent._drain.on and board.loaded() == set()


def test_who_unloads_hears_whether_it_was_there(board: Board) -> None:
    """Also of a worker that has not breathed yet, which nobody else can see."""
    board.agent._loading.load(board.models["small"])
    assert [board.agent._loading.unload(board.models["small"]) for _ in range(2)] == [True, False]


def test_what_is_pinned_while_it_makes_room_stays_pinned(board: Board, meanwhile: Meanwhile) -> None:
    """Until it is loaded again."""
    board.has("large", "middle")
    is_done = meanwhile(board.agent._keeping, "resting", lambda: board.agent._loading.keep("large", -1.0))
    board.agent._loading.load_after_others(board.models["huge"], by_hand=True)
    is_done()
    assert board.loaded() == {"huge"}
    assert board.agent._keeping.pinned() == {"large"}


@pytest.mark.parametrize("asked", ["to load it", "to keep it"])
def test_who_asks_for_a_model_whose_time_is_over_has_it(board: Board, asked: str) -> None:
    """As long as nobody has begun to unload it: they are told that it is there."""
    board.has("small")
    board.agent._keeping.ask("small", 60.0)
    board.later(61)
    assert board.agent._keeping.over({"small"}) == ["small"]
    if asked == "to load it":
        board.agent._loading.load_after_others(board.models["small"], by_hand=True)
    else:
        board.agent._loading.keep("small", -1.0)
    board.agent._loading.put_away("small")
    assert board.loaded() == {"small"}
    assert board.agent._keeping.over({"small"}) == []
