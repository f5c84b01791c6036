"""Models that nobody uses make room for others; busy and pinned ones stay."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from npu.catalog import Catalog
from npu.errors import ModelRefused, OutOfMemory
from npu.hardware import Memory
from npu.model import LoadWhen, Model
from tasks import keys, presence, roster
from tasks.board import loading, room, workers
from tasks.board.agent import Agent
from tasks.board.room import MakingRoom, NoRoomYet
from tasks.board.settings import BoardSettings
from tasks.card import Card
from tasks.presence import Presence
from tasks.prompting import setup
from tasks.settings import TaskSettings
from tests.stack import LIMIT, eventually

GIB = 1 << 30
SIZES = {"tiny": 0.5, "small": 1.0, "middle": 2.0, "large": 3.5, "huge": 5.0}
"""GiB that each model takes."""


class Board:
    """A board that is taken to have 8 GB and may use six, whose workers do nothing but live. Nobody but a test answers."""

    def __init__(self, client: redis.Redis, url: str, folder: Path, **chosen: Any) -> None:
        self.client = client
        self.models = {name: Model(id=name, engine="echo", folder=folder) for name in (*SIZES, "giant")}
        settings = TaskSettings(redis_url=url, data_dir=folder, models_dir=folder, board_name="one", memory_total=8192)
        self.agent = Agent(settings, BoardSettings(**chosen))
        self.agent._workers.command = lambda _: ["/bin/sh", "-c", "exec sleep 1000", "worker"]
        self.agent._announced.catalog = Catalog(tuple(self.models.values()))
        self.answered = 0
        for name in self.models:
            roster.announce(client, Card(id=name, board="one"))
        presence.breathe(client, Presence(name="board:one", board="one"))

    def breathe(self, name: str, state: str = "loaded") -> None:
        """What the worker of a model says of itself."""
        worker = Presence(name=f"{name}@one", board="one", model=name, state=state, answered=self.answered)
        presence.breathe(self.client, worker)

    def has(self, *names: str) -> None:
        """These are loaded, and rest since then, in this order."""
        for name in names:
            self.agent._loading.load(self.models[name])
            self.breathe(name)
            self.agent._keeping.over(self.agent._workers.living())

    def job(self, model: str, state: str, lane: str = "interactive") -> None:
        """One more job of a model: `running` or `waiting`."""
        self.answered += 1
        job = f"{model}{self.answered}"
        self.client.zadd((keys.running if state == "running" else keys.waiting)(model), {job: self.answered})
        self.client.hset(keys.job(job), "lane", lane)

    def jobs_gone(self, model: str) -> None:
        """It has no jobs any more."""
        self.client.delete(keys.running(model), keys.waiting(model))

    def later(self, seconds: float) -> None:
        """So much time passes."""
        now = self.agent._demand._clock() + seconds
        self.agent._demand._clock = lambda: now
        for child in self.agent._workers._children.values():
            child.started -= seconds

    def loaded(self) -> set[str]:
        """The models that have a worker."""
        return set(self.agent._workers.living())

    def gone(self) -> None:
        """Wait until all are gone that were told to."""
        eventually(lambda: not self.agent._workers.leaving(), what="the end of those that leave")


@pytest.fixture
def least_stay() -> float:
    return 0.0


@pytest.fixture
def single_model() -> bool:
    return False


@pytest.fixture
def domains() -> Sequence[int]:
    """The memory domains of the NPU that each model may be put into."""
    return ()


@pytest.fixture
def board(
    client: redis.Redis,
    valkey_url: str,
    tmp_path: Path,
    least_stay: float,
    single_model: bool,
    domains: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Board]:
    sizes = {name: int(size * GIB) for name, size in (SIZES | {"giant": 6.5}).items()}
    monkeypatch.setattr(
        loading, "describe", lambda model, _: SimpleNamespace(memory_bytes=sizes[model.id], memory_domains=domains)
    )
    monkeypatch.setattr(setup, "read_memory", lambda: Memory(64 * GIB, 60 * GIB))
    made = Board(client, valkey_url, tmp_path, least_stay=least_stay, single_model=single_model)
    yield made
    made.agent._workers.stop_all(0.0)


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


def test_jobs_wait_for_a_change_of_the_runtime(board: Board, tmp_path: Path) -> None:
    """Those of models that need none do not; who asks for nothing but a load hears of it."""
    npu = Model(id="small", engine="rkllm", folder=tmp_path)
    board.agent._runtimes.changing = True
    board.agent._loading.load_after_others(npu)
    with pytest.raises(NoRoomYet, match="runtime of this board is being changed"):
        board.agent._loading.load_after_others(npu, by_hand=True)
    board.agent._loading.load(board.models["tiny"])
    assert board.loaded() == {"tiny"}
    board.agent._runtimes.changing = False
    board.agent._loading.load(npu)
    assert board.loaded() == {"tiny", "small"}


def trial(board: Board, name: str) -> AbstractContextManager[None]:
    agent = board.agent
    return agent._loading.room_for_trial(board.models[name], agent._setup)


def test_a_trial_of_a_runtime_has_memory_of_its_own(board: Board) -> None:
    """Others are loaded beside it where there is room, and wait for its end where not: it is no model that could be unloaded."""
    board.agent._runtimes.changing = True
    with trial(board, "large"):
        assert board.agent._room.budget()[1] == int(2.5 * GIB)
        board.agent._loading.load_in_place(board.models["middle"])
        with pytest.raises(NoRoomYet, match="runtime is being tried"):
            board.agent._loading.load_in_place(board.models["huge"])
    board.agent._runtimes.changing = False
    assert board.agent._room.budget()[1] == 4 * GIB
    with pytest.raises(OutOfMemory, match="5120 MiB with its context"), trial(board, "huge"):
        raise AssertionError


def test_a_trial_waits_for_what_is_being_unloaded(board: Board) -> None:
    """Its memory is as good as free."""
    board.has("large", "middle")
    board.agent._workers.stop_behind("large", LIMIT, lambda: None)
    with trial(board, "large"):
        assert board.loaded() == {"middle"} and not board.agent._workers.leaving()


@pytest.fixture
def gone_at_look(board: Board, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have all that leave gone right after memory was looked at for so many times."""
    counted, left = room.Room._free, count()

    def free_and_gone(looking: room.Room, memory: Memory) -> int:
        found = counted(looking, memory)
        if not next(left):
            board.gone()
        return found

    def at(look: int) -> None:
        nonlocal left
        left = count(1 - look)

    monkeypatch.setattr(room.Room, "_free", free_and_gone)
    return at


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


def test_what_is_gone_during_the_look_for_a_trial_is_free(board: Board, gone_at_look: Callable[[int], None]) -> None:
    """The same of a runtime that is tried."""
    board.has("middle", "large")
    gone_at_look(1)
    board.agent._workers.stop_behind("large", LIMIT, lambda: None)
    with trial(board, "large"):
        assert board.loaded() == {"middle"}


@pytest.mark.parametrize("single_model", [True])
def test_a_trial_is_the_one_model_of_a_small_board(board: Board) -> None:
    """While it lasts, and only where there is no other."""
    with trial(board, "tiny"), pytest.raises(NoRoomYet):
        board.agent._loading.load_in_place(board.models["small"])
    board.agent._loading.load_in_place(board.models["small"])
    with pytest.raises(OutOfMemory, match="one model at a time, and that is small"), trial(board, "tiny"):
        raise AssertionError


def test_what_can_never_fit_unloads_nothing(board: Board) -> None:
    """It is refused with the figures: of the simulated board, not of the machine."""
    board.has("large", "middle")
    with pytest.raises(OutOfMemory, match="6656 MiB with its context, but of this board's 8192 MiB"):
        board.agent._loading.load_after_others(board.models["giant"])
    assert board.loaded() == {"large", "middle"}


@pytest.mark.parametrize("least_stay", [1000.0])
def test_what_was_loaded_just_now_stays(board: Board) -> None:
    """Else two models that are asked for by turns would be loaded for every request."""
    board.has("large", "middle")
    with pytest.raises(NoRoomYet):
        board.agent._loading.load_in_place(board.models["huge"])
    for child in board.agent._workers._children.values():
        child.started -= 1001
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
    monkeypatch.setattr(board.agent._demand, "_refuse", lambda model, why: refused.append(model))
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
    board.agent._loading.put_away("small")  # its time is over, and the job still waits
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
    board.agent._loading.put_away("small")
    assert board.loaded() == ({"small"} if gate == "open" else set())


@pytest.mark.parametrize("domains", [range(16)])
def test_each_model_has_a_memory_domain_of_its_own(board: Board) -> None:
    """A large one has two. Each worker is told its own, and whoever comes later gets what is free by then."""
    board.has("huge", "tiny")
    assert board.agent._workers.places(leaving=True) == {"huge": (0, 5 * GIB), "tiny": (2, GIB // 2)}
    started = board.agent._workers._children["tiny"].process
    assert isinstance(started, subprocess.Popen) and list(started.args)[-2:] == ["--memory-domain", "2"]  # type: ignore[arg-type]
    board.agent._loading.load_after_others(board.models["small"])
    assert board.loaded() == {"tiny", "small"}
    assert board.agent._workers.places(leaving=True)["small"] == (0, GIB)


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


def test_a_model_has_as_many_workers_as_fit(board: Board, client: redis.Redis) -> None:
    """Nothing is unloaded for the further ones. Their lack is told with the figures, and ends when there is room and work."""
    board.models["middle"] = model = replace(board.models["middle"], instances=3)
    board.agent._announced.catalog = Catalog(tuple(board.models.values()))
    board.has("tiny")
    board.agent._loading.load(model)
    assert board.loaded() == {"tiny", "middle", "middle#2"}
    assert board.agent._workers.reserved() == 4.5 * GIB
    note = board.agent._loading.fewer["middle"]
    assert note.startswith("It has 2 of the 3 workers") and "needs about 2048 MiB" in note
    board.agent._loading.put_away("middle")
    assert board.loaded() == {"tiny"} and not board.agent._loading.fewer
    board.agent._loading.load(model)
    board.agent._loading.unload(board.models["tiny"])
    board.agent._meet()
    assert board.loaded() == {"middle", "middle#2"}  # nobody waits
    client.zadd(keys.waiting("middle"), {"j": 1})
    board.agent._meet()
    assert board.loaded() == {"middle", "middle#2", "middle#3"}
    assert board.agent._workers.reserved() == 6 * GIB and not board.agent._loading.fewer
    board.agent._loading.unload(model)
    assert board.loaded() == set() and board.agent._workers.reserved() == 0


@pytest.mark.parametrize("domains", [range(16)])
def test_each_worker_of_a_model_has_a_memory_domain(board: Board) -> None:
    """They hold the weights twice."""
    board.agent._loading.load(replace(board.models["small"], instances=2))
    assert board.agent._workers.places(leaving=True) == {"small": (0, GIB), "small#2": (1, GIB)}


@pytest.mark.parametrize("single_model", [True])
def test_one_model_at_a_time_may_have_two_workers(board: Board) -> None:
    """It is one model."""
    board.agent._loading.load(replace(board.models["small"], instances=2))
    assert board.loaded() == {"small", "small#2"}


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


def test_a_pinned_model_gives_no_way(board: Board) -> None:
    """Though it is asked to, as busy models are."""
    board.has("large", "middle")
    board.agent._keeping.ask("large", -1.0)
    for name in ("large", "middle"):
        board.breathe(name, "busy")
    giving_way = ["large", "middle"]
    assert board.agent._room.in_the_way(board.models["middle"], 2 * GIB, giving_way=giving_way) == ["middle"]


@pytest.mark.parametrize("domains", [(0,)])
def test_a_model_that_comes_back_has_its_own_domain_and_its_second_worker_another(board: Board) -> None:
    """It leaves the one it has; a second worker is there beside it."""
    board.has("large")
    large, needed = board.models["large"], int(3.5 * GIB)
    assert board.agent._room.domain(large, needed, (0,)) == 0
    assert board.agent._room.domain(large, needed, (0,), number=2) is None


def test_what_is_given_back_counts_as_free(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine's memory is short, not the models' part of it."""
    monkeypatch.setattr(room, "memory_of", lambda _: Memory(8 * GIB, 3 * GIB))
    assert not board.agent._room.fits(4 * GIB)
    assert board.agent._room.fits(4 * GIB, given_back=2 * GIB)
    with pytest.raises(OutOfMemory, match="only 2662 MiB are free"):
        board.agent._loading.load(board.models["large"])
