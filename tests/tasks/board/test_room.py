"""Models that nobody uses make room for others; busy and pinned ones stay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from random import Random

import pytest
import redis

from npu.catalog import Catalog
from npu.errors import ModelRefused, OutOfMemory
from npu.hardware import Memory
from npu.model import LoadWhen
from tasks import keys, presence
from tasks.board import room, workers
from tasks.board.room import MakingRoom, NoRoomYet
from tests.stack import LIMIT
from tests.tasks.board.small_board import GIB, SIZES, Board


def test_the_longest_unused_goes_first_and_no_more_than_must(board: Board) -> None:
    """And whoever asked for the other model has it then."""
    board.has("middle", "small", "tiny")
    board.agent._loading.load_after_others(board.models["large"])
    assert board.loaded() == {"small", "tiny", "large"}


@pytest.mark.parametrize("why", ["running", "waiting", "busy", "loading"])
def test_a_busy_model_stays_and_jobs_wait_for_it(board: Board, client: redis.Redis, why: str) -> None:
    """The other one goes only where that is enough."""
    board.has("large", "middle")
    if why == "running":
        client.zadd(keys.running("large"), {"j": 10**15})
    elif why == "waiting":
        client.zadd(keys.waiting("large"), {"j": 1})
    else:
        board.breathe("large", why)
    with pytest.raises(NoRoomYet, match="5120 MiB"):
        board.agent._loading.load_in_place(board.models["huge"])
    board.agent._loading.load_after_others(board.models["huge"])  # says that it waits
    with pytest.raises(NoRoomYet):
        board.agent._loading.load_after_others(board.models["huge"], by_hand=True)
    assert board.loaded() == {"large", "middle"}
    board.agent._loading.load_after_others(board.models["small"])
    assert board.loaded() == {"large", "small"}


def test_a_pinned_model_stays(board: Board) -> None:
    """It is named in the refusal. One that stays for ever by default is not pinned."""
    board.has("large", "middle")
    board.agent._keeping.ask("large", -1.0)
    with pytest.raises(OutOfMemory, match=r"Asked to stay for ever: large\.") as refused:
        board.agent._loading.load_in_place(board.models["huge"])
    assert not isinstance(refused.value, NoRoomYet)
    assert board.loaded() == {"large", "middle"}


@pytest.mark.parametrize("single_model", [True])
def test_one_model_at_a_time(board: Board) -> None:
    """However much room there is. A busy one is waited for, a pinned one stays, and nothing is loaded to help."""
    board.has("tiny")
    assert board.agent._room.budget()[1] == 0
    with pytest.raises(OutOfMemory, match="one model at a time, and that is tiny"):
        board.agent._loading.load(board.models["small"])
    board.breathe("tiny", "busy")
    with pytest.raises(NoRoomYet, match="'small' comes once tiny can be unloaded"):
        board.agent._loading.load_in_place(board.models["small"])
    board.breathe("tiny")
    board.agent._loading.load_after_others(board.models["small"])
    assert (board.loaded(), board.agent._workers.leaving()) == ({"small"}, set())
    board.breathe("small")
    board.agent._loading.load_after_others(board.models["small"])  # it is there
    board.agent._keeping.ask("small", -1.0)
    with pytest.raises(OutOfMemory, match=r"Asked to stay for ever: small\.") as refused:
        board.agent._loading.load_in_place(board.models["tiny"])
    assert not isinstance(refused.value, NoRoomYet)
    assert board.loaded() == {"small"}


@pytest.mark.parametrize("look", [1, 2, 3])
def test_what_is_gone_during_a_look_for_room_is_free(
    board: Board, gone_at_look: Callable[[int], None], look: int
) -> None:
    """Counted neither as leaving nor as free, it would have a model refused that fits."""
    board.has("middle", "large")
    gone_at_look(look)
    board.agent._workers.stop_behind("large", LIMIT, lambda: None)
    board.agent._loading.load_after_others(board.models["huge"], by_hand=True)
    assert board.loaded() == {"huge"}


def test_what_can_never_fit_unloads_nothing(board: Board) -> None:
    """It is refused with the figures: of the simulated board, not of the machine."""
    board.has("large", "middle")
    with pytest.raises(OutOfMemory, match="6656 MiB with its context, but of this board's 8192 MiB"):
        board.agent._loading.load_after_others(board.models["giant"])
    assert board.loaded() == {"large", "middle"}


@pytest.mark.parametrize("during", ["the look at memory", "the look at who rests"])
def test_what_is_unloaded_during_a_look_for_room_gets_nobody_refused(
    board: Board, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the look counted it as loaded, and the rest as gone."""
    board.has("middle", "large")
    owner, name = (room.Room, "_free") if during == "the look at memory" else (type(board.agent._keeping), "resting")
    looked, left = getattr(owner, name), count(-2 if name == "_free" else 0)

    def look_and_unload(looking: object, at: object) -> object:
        found = looked(looking, at)
        if not next(left):
            board.agent._workers.stop("large", LIMIT)  # as for the trial of a runtime
            presence.leave(board.client, "large@one")
            return found if name == "_free" else looked(looking, at)
        return found

    monkeypatch.setattr(owner, name, look_and_unload)
    board.agent._loading.load_after_others(board.models["huge"], by_hand=True)
    assert board.loaded() == {"huge"}


@pytest.mark.parametrize("least_stay", [1000.0])
def test_what_was_loaded_just_now_stays(board: Board) -> None:
    """Else two models that are asked for by turns would be loaded for every request."""
    board.has("large", "middle")
    with pytest.raises(NoRoomYet):
        board.agent._loading.load_in_place(board.models["huge"])
    board.later(1001)
    with pytest.raises(MakingRoom):
        board.agent._loading.load_in_place(board.models["huge"])


def test_help_and_preloads_unload_nothing(board: Board) -> None:
    """Only what nobody serves is worth it."""
    board.has("large", "middle")
    with pytest.raises(OutOfMemory):
        board.agent._loading.load(board.models["huge"])
    assert board.loaded() == {"large", "middle"}


def test_five_models_share_a_small_board(board: Board, client: redis.Redis) -> None:
    """Random requests: all are answered, the budget holds throughout, and no model is loaded but for a job."""
    draw, loads, answered, asked = Random(7), 0, 0, 0
    for _ in range(60):
        for name in draw.choices(list(SIZES), k=draw.randint(1, 3)):
            asked += 1
            client.zadd(keys.waiting(name), {f"j{asked}": asked})
        while any(client.zcard(keys.waiting(name)) for name in SIZES):
            before = board.loaded()
            board.agent._demand.meet()
            new = board.loaded() - before
            assert all(client.zcard(keys.waiting(name)) for name in new)
            loads += len(new)
            assert sum(SIZES[name] for name in board.loaded() | board.agent._workers.leaving()) <= 6.0
            assert board.agent._workers.reserved() <= 6 * GIB
            for name in board.loaded():
                answered += client.zcard(keys.waiting(name))
                board.answered += bool(client.zcard(keys.waiting(name)))
                client.delete(keys.waiting(name))
                board.breathe(name)
            for name in set(SIZES) - board.loaded():
                presence.leave(client, f"{name}@one")
            board.agent._keeping.over(board.loaded())
            board.gone()
    assert answered == asked
    assert loads <= asked


def test_requests_do_not_load_what_is_loaded_by_hand(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused with the way to load it, jobs that wait for it fail, and once it is there it answers as any other."""
    refused: list[str] = []
    monkeypatch.setattr(board.agent._demand, "_refuse", lambda model, *_: refused.append(model))
    board.models["small"] = manual = replace(board.models["small"], load=LoadWhen.MANUAL)
    board.agent._announced.catalog = Catalog(tuple(board.models.values()))
    for load in (board.agent._loading.load_after_others, board.agent._loading.load_to_help):
        with pytest.raises(ModelRefused, match="rockchipllama models load small"):
            load(manual)
    client.zadd(keys.waiting("small"), {"j": 1})
    board.agent._demand.meet()
    assert board.loaded() == set() and refused == ["small"]
    board.agent._loading.load_after_others(manual, by_hand=True)
    board.agent._loading.load_after_others(manual)
    assert board.loaded() == {"small"}
    board.put_away("small")  # its time is over, and the job still waits
    assert board.loaded() == set()


@pytest.mark.parametrize("gate", ["open", "paused"])
def test_what_is_unloaded_with_jobs_waiting_comes_back_unless_its_queue_is_paused(
    board: Board, client: redis.Redis, gate: str
) -> None:
    """Nobody would be served by a model whose queue is paused."""
    board.has("small")
    client.zadd(keys.waiting("small"), {"j": 1})
    if gate == "paused":
        client.hset(keys.GATES, "small", gate)
    board.put_away("small")
    assert board.loaded() == ({"small"} if gate == "open" else set())


def test_a_chat_waits_for_no_batch_that_has_the_next_turn(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for the job in hand that was to end first. The batch has its turn after the chat's model."""
    job_ends = threading.Event()
    monkeypatch.setattr(workers, "wait_or_kill", lambda *_: job_ends.wait(LIMIT))
    board.has("huge")
    board.job("huge", "running", "batch")
    board.breathe("huge", "busy")
    board.job("large", "waiting", "batch")
    board.agent._meet()
    board.later(61)
    board.agent._meet()
    assert (board.agent._turns.next, board.agent._workers.leaving()) == ("large", {"huge"})
    board.job("middle", "waiting", "batch")
    board.agent._meet()
    assert board.agent._turns.next == "large"
    board.jobs_gone("middle")
    board.job("middle", "waiting")
    with client.pubsub(ignore_subscribe_messages=True) as control:
        control.subscribe(keys.control("huge@one"))
        board.agent._meet()
        told = next(filter(None, iter(lambda: control.get_message(timeout=1.0), "")))
    assert (told["data"], board.agent._turns.next) == (b"hand-over", "middle")
    job_ends.set()
    board.gone()
    board.agent._meet()
    assert board.loaded() == {"middle"}
    board.agent._meet()
    assert board.loaded() == {"middle", "large"}


def test_what_a_leaving_model_holds_is_not_asked_of_others(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is unloaded where that will do. Until it has gone its room is nobody's."""
    gone = threading.Event()
    monkeypatch.setattr(workers, "wait_or_kill", lambda *_: gone.wait(LIMIT))
    board.has("large", "small")
    room = board.agent._room
    assert room.budget() == (6 * GIB, int(1.5 * GIB))
    board.agent._workers.stop_behind("large", 0.0, lambda: None)
    assert room.budget() == (6 * GIB, int(1.5 * GIB))
    assert room.in_the_way(board.models["huge"], 5 * GIB) == []
    gone.set()
    board.gone()
    assert room.budget() == (6 * GIB, 5 * GIB)


@pytest.mark.parametrize("domains", [range(16)])
def test_a_refusal_names_what_is_short(board: Board) -> None:
    """Memory, though every domain but one is free."""
    board.has("huge")
    with pytest.raises(
        OutOfMemory, match="2048 MiB with its context, but of this board's 8192 MiB only 1024 MiB are free"
    ):
        board.agent._loading.load(board.models["middle"])


def test_what_is_given_back_counts_as_free(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine's memory is short, not the models' part of it."""
    monkeypatch.setattr(room, "memory_of", lambda _: Memory(8 * GIB, 3 * GIB))
    assert not board.agent._room.fits(4 * GIB)
    assert board.agent._room.fits(4 * GIB, given_back=2 * GIB)
    with pytest.raises(OutOfMemory, match="only 2662 MiB are free"):
        board.agent._loading.load(board.models["large"])
