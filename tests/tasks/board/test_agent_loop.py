"""The agent's loop: it goes on whatever happens, and takes no failing disk for a lost Redis."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from npu.catalog import Catalog
from npu.engines import Setup
from npu.errors import ModelRefused
from npu.model import LoadWhen, Model
from npu.rkllm.evidence import NAME
from npu.simulator import build
from tasks import keys, live_settings, presence, roster, systemd
from tasks.blobs import FOLDER, KEPT
from tasks.board import agent as module
from tasks.board import announced, loading
from tasks.board.agent import Agent
from tasks.board.defects import AGAIN, Defects
from tasks.board.heat import HOT
from tasks.board.machine import read_machine
from tasks.board.settings import BoardSettings
from tasks.card import Card
from tasks.commands import UseRuntime
from tasks.roster import read_roster
from tasks.settings import ROOT, TaskSettings
from tasks.worker.pacing import is_hot
from tests.fakes.notified import Notified
from tests.npu.boards import make_board, put
from tests.simulators import SIMULATORS
from tests.stack import LIMIT, Stack, eventually

MANIFEST = 'engine = "echo"\nid = "%s"\n'


class Board:
    """An agent in a thread, whose workers do nothing but live, and which looks often."""

    def __init__(self, client: redis.Redis, url: str, folder: Path) -> None:
        self.client = client
        self.models = folder / "models"
        self.add("first")
        settings = TaskSettings(redis_url=url, data_dir=folder / "data", models_dir=self.models, board_name="one")
        self.agent = Agent(settings, BoardSettings())
        self.agent._workers.command = lambda _: ["/bin/sleep", "1000"]
        self._thread = threading.Thread(target=self.agent.run)

    def add(self, name: str) -> None:
        (self.models / name).mkdir(parents=True)
        (self.models / name / "manifest.toml").write_text(MANIFEST % name)

    def start(self) -> None:
        self._thread.start()
        self.knows("first")

    def knows(self, name: str) -> None:
        """Wait for a model's card."""
        eventually(lambda: self.client.hexists(keys.CARDS, f"{name}/one"), what=f"the card of {name}")

    def goes_on(self) -> None:
        """It notices a new model."""
        self.add("another")
        self.knows("another")
        assert self._thread.is_alive()

    def leave(self) -> None:
        self.agent.leave()
        if self._thread.ident is not None:
            self._thread.join(LIMIT)
        self.agent._workers.stop_all(0.0)


@pytest.fixture
def board(client: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    for pause in ("LOOK", "SWEEP", "WATCH"):
        monkeypatch.setattr(module, pause, 0.1)
    made = Board(client, valkey_url, tmp_path)
    yield made
    made.leave()


def fails(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: Exception, times: int) -> threading.Event:
    """Have a function raise so many times, and then work again; the event is set with the last time."""
    real: Callable[..., object] = getattr(owner, name)
    done = threading.Event()
    left = times

    def played(*words: object, **more: object) -> object:
        nonlocal left
        if left == 0:
            return real(*words, **more)
        left -= 1
        if left == 0:
            done.set()
        raise type(error)(*error.args)

    monkeypatch.setattr(owner, name, played)
    return done


@pytest.mark.parametrize(
    "where", ["_workers.tick", "_look", "_sweep", "_loading.tell_to_load", "_watchdog.look", "_loading.preload"]
)
def test_a_defect_ends_no_loop(
    board: Board, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, with its traceback."""
    owner: object = board.agent
    *path, name = where.split(".")
    for word in path:
        owner = getattr(owner, word)
    times = 1 if name in ("preload", "_look") else 3
    done = fails(monkeypatch, owner, name, ZeroDivisionError("played"), times)
    board.start()
    assert done.wait(LIMIT)
    board.goes_on()
    told = [record for record in caplog.records if record.exc_info and record.exc_info[0] is ZeroDivisionError]
    assert len(told) == 1


def test_an_outage_at_the_start_puts_off_what_is_loaded_then(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look begins again."""
    gone = fails(monkeypatch, board.agent._loading, "preload", redis.ConnectionError("played"), 1)
    again = threading.Event()
    failing = board.agent._loading.preload

    def preload() -> None:
        if gone.is_set():
            again.set()
        failing()

    monkeypatch.setattr(board.agent._loading, "preload", preload)
    board.start()
    assert gone.wait(LIMIT) and again.wait(LIMIT)


def test_a_worker_that_is_to_load_is_told_soon(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """However seldom the loop comes round: somebody waits for the model, and a worker listens a moment after its start."""
    monkeypatch.setattr(module, "ROUND", 10 * LIMIT)
    board.start()
    eventually(lambda: board.agent._workers.living(), what="the worker of the only model")
    assert board.agent._loading.to_tell
    with board.client.pubsub() as worker:
        worker.subscribe(keys.control("first@one"))
        eventually(lambda: not board.agent._loading.to_tell, what="its word")


@pytest.mark.parametrize(("name", "times"), [("tick", 3), ("start", 1)], ids=["in the loop", "at the start"])
def test_workers_that_cannot_be_looked_after_are_no_outage(
    board: Board, name: str, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No memory for a process is an `OSError`, as a broken connection is."""
    done = fails(monkeypatch, board.agent._workers, name, OSError(errno.ENOMEM, "Cannot allocate memory"), times)
    board.start()
    assert done.wait(LIMIT)
    board.goes_on()
    assert "Cannot allocate memory" in caplog.text
    assert "lost Redis" not in caplog.text


def test_a_change_of_the_runtime_is_told_before_it_is_answered(board: Board, tmp_path: Path) -> None:
    """Whoever changed it, or installed one, looks at it next."""
    for version in ("1.2.3", "1.3.0"):
        place = tmp_path / "data" / "runtime" / version / NAME
        place.parent.mkdir(parents=True)
        shutil.copy(build(version, SIMULATORS), place)

    def told() -> presence.Runtime | None:
        return next((breath.runtime for breath in read_roster(board.client).breaths), None)

    board.start()
    eventually(lambda: told() == presence.Runtime(version="1.3.0", installed=("1.3.0", "1.2.3")), what="the newest")
    board.agent._change(UseRuntime("1.2.3"))
    assert told() == presence.Runtime(version="1.2.3", installed=("1.3.0", "1.2.3"))


def test_systemd_hears_of_it_while_the_loop_turns(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is there, that it lives, that it stops; nothing while it stands still."""
    stuck, free = threading.Event(), threading.Event()

    def stand_still() -> None:
        stuck.set()
        free.wait(LIMIT)

    with Notified(str(tmp_path / "systemd")) as notified:
        monkeypatch.setenv("NOTIFY_SOCKET", notified.address)
        monkeypatch.setenv("WATCHDOG_USEC", "60000")
        board.agent._pulse = systemd.Pulse()
        board.start()
        notified.until("READY=1")
        notified.until("WATCHDOG=1")
        monkeypatch.setattr(board.agent._workers, "tick", stand_still)
        assert stuck.wait(LIMIT)
        notified.forget()
        assert notified.hears_nothing(0.2)
        free.set()
        notified.until("WATCHDOG=1")
        board.leave()
        notified.until("STOPPING=1")


def test_a_board_waits_for_its_npu(
    board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the machine has only just started; its models are announced once the driver is there."""
    there = threading.Event()
    monkeypatch.setattr(module, "since_boot", lambda: 5.0)
    monkeypatch.setattr(module, "node_is_missing", lambda: not there.is_set())
    starting = threading.Thread(target=board.start)
    starting.start()
    eventually(lambda: "waiting for it" in caplog.text, what="the wait")
    assert not board.client.hexists(keys.CARDS, "first/one")
    there.set()
    starting.join(LIMIT)
    board.goes_on()
    assert "cannot be used" not in caplog.text


def test_a_board_does_not_wait_for_its_npu_for_ever(
    board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs without is served."""
    moments = iter([5.0, 59.0])
    monkeypatch.setattr(module, "since_boot", lambda: next(moments, 61.0))
    monkeypatch.setattr(module, "node_is_missing", lambda: True)
    board.start()
    assert "the NPU cannot be used" in caplog.text


def test_a_full_redis_ends_nothing(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once. It answers, so leases and silence count all the same, or a dead worker's jobs would never end."""
    caplog.set_level(logging.WARNING)
    forgiven = threading.Event()
    board.start()
    monkeypatch.setattr(board.agent._watchdog, "forgive", forgiven.set)
    eventually(lambda: board.agent._sweeper._run, what="the first sweep")  # with it a sweeper starts to count
    swept = board.agent._sweeper._outage
    client.config_set("maxmemory", "1")
    try:
        board.add("late")
        eventually(lambda: "the board lost Redis" in caplog.text, what="the news")
        assert not forgiven.is_set() and board.agent._sweeper._outage == swept
    finally:
        client.config_set("maxmemory", "512mb")
    board.knows("late")


def test_an_outage_is_told_once_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What asks Redis nothing has not found it again."""
    caplog.set_level(logging.WARNING, logger="rockchipllama.board")
    monkeypatch.setattr(module, "SWEEP", 0.1)
    stack = Stack({})
    stack.start_valkey()
    tried = threading.Semaphore(0)
    board = Board(stack.redis, stack.redis_url, tmp_path)
    board.agent._workers.command = lambda _: ["/bin/false"]  # without workers there is nothing to ask after
    real = board.agent._sweep

    def sweep() -> None:
        tried.release()
        real()

    monkeypatch.setattr(board.agent, "_sweep", sweep)
    try:
        board.start()
        stack.stop_valkey()
        eventually(lambda: "the board lost Redis" in caplog.text, what="the news")
        for _ in range(4):
            assert tried.acquire(timeout=LIMIT)
        stack.start_valkey()
        eventually(lambda: "the board has Redis back" in caplog.text, what="the news")
        told = [record.message for record in caplog.records if record.message.startswith("the board ")]
        assert len(told) == 2, told
    finally:
        board.leave()
        stack.stop()


def test_a_pulled_stick_is_told_and_is_no_outage(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was found stays announced and served; what is lost on the way is named."""
    board.start()
    eventually(lambda: board.agent._workers.living(), what="a worker")
    eventually(lambda: board.agent._sweeper._run, what="the first sweep")  # with it a sweeper starts to count
    swept = board.agent._sweeper._outage
    with monkeypatch.context() as patched:
        done = fails(patched, announced, "find_models", OSError(errno.EIO, "Input/output error"), 5)
        assert done.wait(LIMIT)
    assert caplog.text.count("cannot be read ([Errno 5] Input/output error). What was found there before stays.") == 1
    assert "lost Redis" not in caplog.text and board.agent._sweeper._outage == swept
    assert client.hexists(keys.CARDS, "first/one")
    assert board.agent._workers.has("first")
    board.goes_on()


def test_one_model_that_cannot_be_read_hides_no_other(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A known one stays, for its worker may hold it in memory; an unknown one is not announced."""
    board.start()
    real = announced.card_of

    def played(model: Model, name: str, setup: Setup) -> Card:
        if model.id in ("first", "fresh"):
            raise OSError(errno.EIO, "Input/output error")
        return real(model, name, setup)

    monkeypatch.setattr(announced, "card_of", played)
    board.add("fresh")
    eventually(lambda: "The model fresh in" in caplog.text, what="the news")
    board.goes_on()
    assert client.hexists(keys.CARDS, "first/one") and not client.hexists(keys.CARDS, "fresh/one")
    assert board.agent._workers.has("first")
    assert "lost Redis" not in caplog.text


def test_what_could_not_be_looked_at_first_is_loaded_later(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that is loaded with the start waits for the first look that succeeds."""
    fails(monkeypatch, roster, "announce", redis.exceptions.ReadOnlyError("You can't write against a replica."), 3)
    board.start()
    eventually(lambda: board.agent._workers.has("first"), what="a worker")


@contextmanager
def left_behind(folder: Path, *models: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """What stands for the workers of these models that an agent left when it was killed."""
    code = (
        "import pathlib, sys, threading; from tasks import worker_lock; "
        "worker_lock.take(pathlib.Path(sys.argv[1]), sys.argv[2]); print('held', flush=True); threading.Event().wait()"
    )
    left = {
        model: subprocess.Popen([sys.executable, "-c", code, str(folder), model], stdout=subprocess.PIPE, cwd=ROOT)
        for model in models
    }
    try:
        for process in left.values():
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield left
    finally:
        for process in left.values():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_an_agent_clears_what_the_one_before_it_had_begun(board: Board, tmp_path: Path) -> None:
    """A trial of a runtime, and a model that was being made: nobody goes on with either."""
    left = [tmp_path / "data/run/.trial-abc/first", board.models / ".partial/.made~/adapters"]
    for folder in left:
        folder.mkdir(parents=True)
    (board.models / ".partial/.stages.lock").touch()
    board.start()
    assert not any(folder.parent.exists() for folder in left)


def test_files_that_no_model_was_made_of_are_dropped(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an upload left that was killed, and what came later: nobody need send another file for them to go."""
    monkeypatch.setattr(module, "TIDY", 0.1)
    folder = board.models / FOLDER
    folder.mkdir(parents=True)
    yesterday = time.time() - KEPT - 60
    for name, sent in ((".killed", yesterday), ("new", time.time())):
        (folder / name).touch()
        os.utime(folder / name, (sent, sent))
    board.start()
    assert [path.name for path in folder.iterdir()] == ["new"]
    os.utime(folder / "new", (yesterday, yesterday))
    eventually(lambda: not any(folder.iterdir()), what="the file is dropped in its time")


def test_an_agent_takes_over_what_the_one_before_it_left(board: Board, tmp_path: Path) -> None:
    """Every worker that lives, not only the one it would have started; whose model is gone has to leave."""
    board.add("second")
    with left_behind(tmp_path / "data", "second", "ghost") as left:
        try:
            board.start()
            eventually(lambda: set(board.agent._workers.living()) == {"first", "second"}, what="both workers")
            assert board.agent._workers.living()["second"] == left["second"].pid
            assert left["ghost"].wait(LIMIT) == -signal.SIGTERM
            assert left["second"].poll() is None
        finally:
            board.leave()


def test_a_drained_board_lets_go_what_it_takes_over(board: Board, client: redis.Redis, tmp_path: Path) -> None:
    """Also a worker that was left behind; when the board is resumed, its model is loaded again."""
    client.hset(keys.DRAINED, "one", "0")
    board.add("second")
    with left_behind(tmp_path / "data", "second") as left:
        try:
            board.start()
            assert left["second"].wait(LIMIT) == -signal.SIGTERM
            eventually(lambda: not board.agent._workers.living(), what="no worker")
            client.hdel(keys.DRAINED, "one")
            eventually(lambda: set(board.agent._workers.living()) == {"second"}, what="it is loaded again")
        finally:
            board.leave()


def test_what_can_chat_is_loaded_first(board: Board) -> None:
    """Though another comes before it by its name, and its engine is no echo."""
    board.agent._announced.catalog = Catalog(
        tuple(Model(id=name, engine="echo", folder=board.models) for name in "abc")
    )
    board.agent._announced.ids, board.agent._announced.chats = set("abc"), {"b"}
    board.agent._loading.preload()
    assert board.agent._workers.has("b") and not board.agent._workers.has("a")


@pytest.mark.parametrize(("default", "loaded"), [("", {"b", "d"}), ("c", {"b", "c", "d"})])
def test_models_are_loaded_that_are_to_be_there(board: Board, default: str, loaded: set[str]) -> None:
    """All that say so, and the default model besides; nobody's first model then."""
    preload, on_demand = LoadWhen.PRELOAD, LoadWhen.ON_DEMAND
    board.agent._loading._settings = board.agent._settings.model_copy(update={"default_model": default or None})
    board.agent._announced.catalog = Catalog(
        tuple(
            Model(id=name, engine="echo", folder=board.models, load=preload if name in "bd" else on_demand)
            for name in "abcd"
        )
    )
    board.agent._announced.ids = board.agent._announced.chats = set("abcd")
    board.agent._loading.preload()
    assert {name for name in "abcd" if board.agent._workers.has(name)} == loaded


def test_nobodys_first_model_is_one_that_is_loaded_by_hand(board: Board) -> None:
    """Another one is, though it comes later."""
    first = Model(id="a", engine="echo", folder=board.models, load=LoadWhen.MANUAL)
    board.agent._announced.catalog = Catalog((first, Model(id="b", engine="echo", folder=board.models)))
    board.agent._announced.ids = board.agent._announced.chats = set("ab")
    board.agent._loading.preload()
    assert board.agent._workers.has("b") and not board.agent._workers.has("a")


def test_what_is_made_of_another_is_loaded_after_it(board: Board) -> None:
    """Though it comes before it by its name."""
    made = Model(id="a", engine="echo", folder=board.models, base="b")
    board.agent._announced.catalog = Catalog((made, Model(id="b", engine="echo", folder=board.models)))
    board.agent._announced.ids = board.agent._announced.chats = set("ab")
    board.agent._loading.preload()
    assert board.agent._workers.has("b") and not board.agent._workers.has("a")


def test_files_that_are_refused_are_told_with_each_breath(board: Board, client: redis.Redis) -> None:
    """Under the names people would ask for, with the reason, and without the folders that lead there."""
    board.models.joinpath("Cut-Off-1B.gguf").write_bytes(b"no GGUF")
    os.utime(board.models / "Cut-Off-1B.gguf", (0, 0))  # not just being copied
    board.add("wrong")
    (board.models / "wrong/manifest.toml").write_text("colour = 1")
    board.start()

    def told() -> presence.Presence:
        kept = client.hget(keys.PRESENCE, "board:one")
        return presence.read_breath(kept) if kept else presence.Presence(name="", board="")

    eventually(lambda: "wrong" in told().refused, what="the breath")
    refused = told().refused
    assert {"cut-off-1b", "cut-off:1b", "wrong"} <= set(refused)
    assert "colour" in refused["wrong"]
    assert "Cut-Off-1B.gguf" in refused["cut-off-1b"]
    assert str(board.models) not in str(refused)
    assert {name: set(names) for name, names, _ in presence.unusable(told())} == {
        "cut-off-1b": {"cut-off:1b"},
        "wrong": {"wrong:latest"},
    }


def test_a_file_that_cannot_be_read_is_not_preloaded(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next model is tried."""
    board.agent._announced.catalog = Catalog(tuple(Model(id=name, engine="echo", folder=board.models) for name in "ab"))
    board.agent._announced.ids = {"a", "b"}
    fails(monkeypatch, loading, "describe", OSError(errno.EIO, "Input/output error"), 1)
    board.agent._loading.preload()
    assert board.agent._workers.has("b") and not board.agent._workers.has("a")


def test_a_defect_is_told_again_only_after_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind by itself: the same class from another place is another one."""
    now = 1000.0
    monkeypatch.setattr("tasks.board.defects.time", SimpleNamespace(monotonic=lambda: now))
    defects = Defects(logging.getLogger("test"), "the test")

    def here() -> None:
        raise ValueError("here")

    def there() -> None:
        raise ValueError("there")

    def met(place: Callable[[], None]) -> int:
        caplog.clear()
        try:
            place()
        except ValueError as error:
            defects.met(error)
        return len(caplog.records)

    assert [met(here), met(here), met(there), met(there)] == [1, 0, 1, 0]
    now += AGAIN
    assert [met(here), met(here)] == [1, 0]


def test_a_model_that_jobs_wait_for_is_loaded_again(board: Board, client: redis.Redis) -> None:
    """It was unloaded while they waited, and no new request comes that would ask for it."""
    board.start()
    model = board.agent._announced.catalog.find("first")
    assert model is not None
    eventually(lambda: board.agent._workers.has("first"), what="a worker")
    board.agent._loading.unload(model)
    assert not board.agent._workers.has("first")
    client.hset(keys.job("j"), mapping={"state": "queued", "deadline": 10**15, "model": "first"})
    client.zadd(keys.waiting("first"), {"j": 1})
    eventually(lambda: board.agent._workers.has("first"), what="another worker")


def test_jobs_do_not_wait_for_a_look_when_their_model_was_unloaded(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be some seconds away."""
    monkeypatch.setattr(module, "WATCH", 10 * LIMIT)
    board.start()
    before = eventually(board.agent._workers.living, what="a worker")
    model = board.agent._announced.catalog.find("first")
    assert model is not None
    client.hset(keys.job("j"), mapping={"state": "queued", "deadline": 10**15, "model": "first"})
    client.zadd(keys.waiting("first"), {"j": 1})
    board.agent._loading.unload(model)
    eventually(board.agent._workers.living, what="another worker")
    assert board.agent._workers.living() != before


def test_a_model_that_is_wanted_while_it_goes_is_back_at_once(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody need notice first that jobs wait for it."""
    monkeypatch.setattr(module, "WATCH", 10 * LIMIT)
    board.start()
    before = eventually(board.agent._workers.living, what="a worker")
    client.zadd(keys.waiting("first"), {"j": 1})

    def time_is_over() -> None:
        board.agent._keeping.ask("first", 0.0)
        board.agent._keeping.over(["first"])
        board.agent._loading.put_away("first")

    time_is_over()
    after = board.agent._workers.living()
    assert before.keys() == after.keys() == {"first"} and before != after
    client.delete(keys.waiting("first"))
    time_is_over()
    assert not board.agent._workers.living()


def test_what_a_dead_worker_held_is_handed_back(board: Board, client: redis.Redis) -> None:
    """Its lease would last for ever."""
    board.start()
    [pid] = eventually(board.agent._workers.living, what="a worker").values()
    record = {
        "state": "running",
        "claim": "1-7",
        "worker": "first@one",
        "child": pid,
        "call": "c",
        "order": 1,
    }
    client.hset(keys.job("j"), mapping=record)
    client.zadd(keys.running("first"), {"j": 10**15})
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: client.hget(keys.job("j"), "history") is not None, what="its end")


def test_a_drained_board_serves_nothing_until_it_is_resumed(
    board: Board, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where another board has the model is the job in hand given up at once. What was loaded is loaded again."""
    monkeypatch.setattr(presence, "BREATH", 0.1)
    board.add("alone")
    board.start()
    board.knows("alone")
    eventually(lambda: "one" in read_roster(client).boards, what="its first breath")
    for model in board.agent._announced.catalog.models:
        board.agent._loading.load(model)
    eventually(lambda: set(board.agent._workers.living()) == {"first", "alone"}, what="both are loaded")
    board.agent._loading.keep("alone", -1.0)
    roster.announce(client, Card(id="first", board="two", engine="echo"))
    with client.pubsub() as told:
        told.psubscribe(keys.control("*@one"))
        eventually(lambda: client.pubsub_numpat(), what="the subscription")
        presence.breathe(client, presence.Presence(name="board:two", board="two"))
        client.hset(keys.DRAINED, "one", "0")

        def nobody() -> bool:
            presence.breathe(client, presence.Presence(name="board:two", board="two"))
            return not board.agent._workers.living() and not board.agent._workers.leaving()

        eventually(nobody, what="no worker")
        client.publish(keys.control("nobody@one"), "the end")
        words = iter(lambda: eventually(lambda: told.get_message(timeout=0.1), what="a word"), None)
        until = takewhile(lambda word: word["data"] != b"the end", words)
        given_up = [bytes(word["channel"]) for word in until if word["data"] == b"move"]
    assert given_up == [keys.control("first@one").encode()]
    eventually(lambda: "one" not in read_roster(client).boards, what="others know")
    with pytest.raises(ModelRefused, match=r"drained .*`rockchipllama boards resume one`"):
        board.agent._loading.load(board.agent._announced.catalog.models[0])
    gone = fails(monkeypatch, board.agent._loading, "load", redis.ConnectionError("played"), 1)
    client.hdel(keys.DRAINED, "one")
    assert gone.wait(LIMIT)  # Redis, in this very moment
    eventually(lambda: set(board.agent._workers.living()) == {"first", "alone"}, what="both are loaded again")
    eventually(lambda: board.agent._keeping.pinned() == {"alone"}, what="and the one that was pinned is so again")


def test_a_setting_of_the_service_is_obeyed(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long models stay is looked up when it matters."""
    monkeypatch.setattr(live_settings, "FRESH", 0.1)
    board.start()
    assert board.agent._keeping._limit("first") == -1
    board.client.hset(keys.SETTINGS, "keep_alive", json.dumps({"value": 60.0, "by": "somebody", "at": 1.0}))
    eventually(lambda: board.agent._keeping._limit("first") == 60.0, what="a board that has read it")


def test_a_hot_board_says_so(
    board: Board, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its breath, by which its workers go, and in the notes of its models."""
    root = make_board(tmp_path / "root", "rk3588")
    put(root, "sys/class/thermal/thermal_zone0/temp", "86000\n")
    monkeypatch.setattr(module, "read_machine", partial(read_machine, root=root))
    board.start()
    eventually(lambda: is_hot(client, "one"), what="a breath of a hot board")
    eventually(lambda: any(HOT in card.notes for card in read_roster(client).cards), what="the note")
