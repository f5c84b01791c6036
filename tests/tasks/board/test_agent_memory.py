"""A board never loads more than fits into its memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from npu.engines.echo import MEMORY_BYTES
from npu.errors import OutOfMemory
from npu.hardware import Memory
from npu.model import Model
from tasks import keys
from tasks.board import unparking, workers
from tasks.board.agent import Agent
from tasks.board.process import WorkerProcess, wait_or_kill
from tasks.board.room import MakingRoom
from tasks.board.settings import BoardSettings
from tasks.presence import Presence, breathe
from tasks.prompting import setup
from tasks.settings import TaskSettings
from tests.stack import LIMIT, eventually

MIB = 1 << 20


@pytest.fixture
def agent(standing: None, client: redis.Redis, valkey_url: str, tmp_path: Path) -> Iterator[Agent]:
    """An agent whose workers do nothing but live. It leaves a quarter of the memory to the system."""
    settings = TaskSettings(redis_url=valkey_url, data_dir=tmp_path, models_dir=tmp_path, board_name="one")
    made = Agent(settings, BoardSettings())
    made._workers.command = lambda _: ["/bin/sleep", "1000"]
    yield made
    made._workers.stop_all(0.0)


def has_memory(monkeypatch: pytest.MonkeyPatch, total: float, available: float) -> None:
    monkeypatch.setattr(setup, "read_memory", lambda: Memory(int(total * MIB), int(available * MIB)))


def echo(name: str = "echo") -> Model:
    """It is estimated at one MiB."""
    assert MEMORY_BYTES == MIB
    return Model(id=name, engine="echo", folder=Path("/nowhere"))


def test_a_model_that_does_not_fit_is_refused_with_the_figures(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs, what there is, what is free; no worker is started."""
    has_memory(monkeypatch, total=4000, available=200.5)  # of which 200 stay free
    with pytest.raises(OutOfMemory) as refused:
        agent._loading.load(echo())
    for figure in ("'echo'", "1 MiB", "4000 MiB", "only 0 MiB"):
        assert figure in str(refused.value)
    assert not agent._workers.has("echo")


def test_a_model_that_fits_is_loaded(agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last byte; a worker is started, and told to load as soon as it listens."""
    has_memory(monkeypatch, total=100, available=6)
    agent._loading.load(echo())
    assert agent._workers.has("echo")
    agent._loading.tell_to_load()  # nobody listens yet
    with client.pubsub(ignore_subscribe_messages=True) as worker:
        worker.subscribe(keys.control("echo@one"))
        told: list[bytes] = []

        def listen() -> bool:
            agent._loading.tell_to_load()
            message = worker.get_message(timeout=0.1)
            told.extend([message["data"]] if message else [])
            return bool(told)

        eventually(listen, what="the word to load")
        agent._loading.tell_to_load()  # told once
        assert worker.get_message(timeout=0.1) is None
    assert told == [b"load"]


def test_what_leaves_is_not_told_to_load(agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """It listens until it is gone, and its successor, which is called the same, would never hear."""
    gone = threading.Event()
    has_memory(monkeypatch, total=100, available=50)
    agent._loading.load(echo())
    agent._loading.load(echo("another"))
    monkeypatch.setattr(workers, "wait_or_kill", lambda *_: gone.wait(LIMIT))
    with client.pubsub(ignore_subscribe_messages=True) as heard, ThreadPoolExecutor(1) as pool:
        heard.subscribe(keys.control("echo@one"), keys.control("another@one"))
        eventually(lambda: client.pubsub_numsub(keys.control("another@one"))[0][1] == 1, what="workers that listen")

        def told() -> str:
            message = eventually(lambda: heard.get_message(timeout=0.1), what="a word")
            assert message["data"] == b"load"
            return str(message["channel"].decode().removeprefix("rl:control:"))

        unloaded = pool.submit(agent._loading.unload, echo())
        eventually(agent._workers.leaving, what="a worker that leaves")
        agent._loading.load(echo())
        agent._loading.tell_to_load()
        assert told() == "another@one"
        gone.set()
        unloaded.result(LIMIT)
        agent._loading.tell_to_load()
        assert told() == "echo@one"


def test_a_model_that_has_gone_has_no_worker_from_then_on(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its job in hand has time to end: what is loaded a moment later is not unloaded with it."""
    has_memory(monkeypatch, total=100, available=50)
    agent._loading.load(echo())
    with monkeypatch.context() as busy:
        busy.setattr(threading.Thread, "start", lambda _: None)  # no other thread comes to anything
        agent._loading.dismiss("echo")
    assert not agent._workers.has("echo")


def test_models_that_are_still_loading_count(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not miss their memory yet, so what they were estimated at is set aside."""
    has_memory(monkeypatch, total=3, available=3)
    agent._loading.load(echo("one"))
    agent._loading.load(echo("two"))
    with pytest.raises(OutOfMemory):
        agent._loading.load(echo("three"))
    agent._loading.unload(echo("one"))
    agent._loading.load(echo("three"))


def test_unloads_are_counted_by_their_reasons(
    agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of models that were there."""
    has_memory(monkeypatch, total=100, available=50)
    for name in ("asked", "gone", "idle", "room"):
        agent._loading.load(echo(name))
    agent._loading.unload(echo("asked"))
    agent._loading.unload(echo("asked"))
    agent._loading.dismiss("gone")
    monkeypatch.setattr(agent._keeping, "over", lambda models: ["idle"])
    monkeypatch.setattr(agent._keeping, "is_over", lambda model: True)
    agent._rest()
    eventually(lambda: not agent._workers.has("idle"), what="a model that is put away")
    monkeypatch.setattr(agent._room, "fits", lambda *_, **__: False)
    monkeypatch.setattr(agent._room, "in_the_way", lambda *_: ["room"])
    with pytest.raises(MakingRoom):
        agent._loading.load_in_place(echo())
    agent._events.report(client)
    counted = {field.decode(): int(count) for field, count in client.hgetall(keys.COUNTS).items()}
    assert counted == {f"unloads {why} {why}": 1 for why in ("asked", "gone", "idle", "room")}


def test_a_model_that_is_there_needs_no_more(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it again is not refused, however little is free by now."""
    has_memory(monkeypatch, total=100, available=50)
    agent._loading.load(echo())
    has_memory(monkeypatch, total=100, available=0)
    agent._loading.load(echo())
    assert agent._workers.reserved() == MIB


def test_the_memory_of_a_model_that_is_being_unloaded_is_waited_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for another model gets it then, instead of a refusal that is true for a moment only."""
    gone = threading.Event()

    def wait(processes: list[WorkerProcess], grace: float) -> None:
        assert gone.wait(LIMIT)
        wait_or_kill(processes, 0.0)
        has_memory(monkeypatch, total=100, available=6)

    has_memory(monkeypatch, total=100, available=6)
    agent._loading.load(echo())
    has_memory(monkeypatch, total=100, available=5)
    monkeypatch.setattr(workers, "wait_or_kill", wait)
    with ThreadPoolExecutor(2) as pool:
        unloaded = pool.submit(agent._loading.unload, echo())
        eventually(agent._workers.leaving, what="a worker that leaves")
        another = pool.submit(agent._loading.load_after_others, echo("another"))
        with pytest.raises(TimeoutError):
            another.result(0.3)
        gone.set()
        unloaded.result(LIMIT)
        another.result(LIMIT)
    assert agent._workers.living().keys() == {"another"}


def test_a_board_that_leaves_waits_for_no_memory(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks it for a model is told how things stand."""
    has_memory(monkeypatch, total=100, available=5)
    monkeypatch.setattr(agent._workers, "leaving", lambda: {"another"})
    agent.leave()
    with pytest.raises(OutOfMemory):
        agent._loading.load_after_others(echo())


def test_a_model_that_is_being_unloaded_may_be_loaded_again(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the memory that its successor gets, which starts once it is gone."""
    gone = threading.Event()
    has_memory(monkeypatch, total=100, available=6)
    agent._loading.load(echo())
    has_memory(monkeypatch, total=100, available=5)
    monkeypatch.setattr(workers, "wait_or_kill", lambda *_: gone.wait(LIMIT))
    with ThreadPoolExecutor(1) as pool:
        unloaded = pool.submit(agent._loading.unload, echo())
        eventually(agent._workers.leaving, what="a worker that leaves")
        agent._loading.load(echo())
        agent._workers.tick()
        assert agent._workers.has("echo") and not agent._workers.living()
        gone.set()
        unloaded.result(LIMIT)
    agent._workers.tick()
    assert agent._workers.living().keys() == {"echo"}


def test_a_smaller_context_is_the_advice(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what a user can do."""
    has_memory(monkeypatch, total=1, available=1)
    with pytest.raises(OutOfMemory, match="Unload another model, or set a smaller context_length"):
        agent._loading.load(echo())


def test_what_others_have_parked_is_given_back_first(
    agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their workers are told, and waited for; a board where nothing is parked refuses as ever."""
    monkeypatch.setattr(unparking, "PATIENCE", LIMIT)
    has_memory(monkeypatch, total=100, available=5)
    breathe(client, Presence(name="other@one", board="one", model="other", state="loaded"))
    breathe(client, Presence(name="other@two", board="two", model="other", state="loaded", parked=MIB))
    with pytest.raises(OutOfMemory):
        agent._loading.load(echo())
    breathe(client, Presence(name="other@one", board="one", model="other", state="loaded", parked=MIB))
    with client.pubsub(ignore_subscribe_messages=True) as worker, ThreadPoolExecutor(1) as pool:
        worker.subscribe(keys.control("other@one"))
        eventually(lambda: client.pubsub_numsub(keys.control("other@one"))[0][1] == 1, what="a worker that listens")

        def give_back() -> bytes:
            message = eventually(lambda: worker.get_message(timeout=0.1), what="a word")
            has_memory(monkeypatch, total=100, available=6)
            return bytes(message["data"])

        told = pool.submit(give_back)
        agent._loading.load(echo())
        assert told.result(LIMIT) == b"unpark"
    assert agent._workers.has("echo")


@contextmanager
def control_channels(client: redis.Redis) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """What was told since it was last asked, to the workers of two boards."""
    with client.pubsub(ignore_subscribe_messages=True) as workers:
        workers.subscribe(keys.control("other@one"), keys.control("other@two"), keys.control("echo@one"))
        eventually(lambda: client.pubsub_numsub(keys.control("echo@one"))[0][1] == 1, what="workers that listen")

        def told() -> list[tuple[str, str]]:
            client.publish(keys.control("other@two"), "the end")
            words = []
            while not words or words[-1][1] != "the end":
                message = eventually(lambda: workers.get_message(timeout=0.1), what="a word")
                words.append((message["channel"].decode().removeprefix("rl:control:"), message["data"].decode()))
            return words[:-1]

        yield told


def test_nothing_is_parked_while_a_model_is_loaded(
    agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board's workers are told before it begins, and again until it is there: the kernel does not miss that memory yet."""
    has_memory(monkeypatch, total=100, available=50)
    for board in ("one", "two"):
        breathe(client, Presence(name=f"other@{board}", board=board, model="other", state="loaded"))
    with control_channels(client) as told:
        agent._loading.pause_parking()
        assert told() == []
        agent._loading.load(echo())
        assert told() == [("other@one", "pause-parking 15")]
        agent._loading.pause_parking()  # its worker is on its way
        assert told() == [("other@one", "pause-parking 15")]
        agent._loading.tell_to_load()
        assert told() == [("echo@one", "load")]
        breathe(client, Presence(name="echo@one", board="one", model="echo", state="loading"))
        agent._loading.pause_parking()
        assert ("other@one", "pause-parking 15") in told()
        breathe(client, Presence(name="echo@one", board="one", model="echo", state="loaded"))
        agent._loading.pause_parking()
        agent._loading.load(echo())  # it is there
        assert told() == []


def test_nothing_is_parked_while_a_runtime_is_tried(
    agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as that lasts: no worker says that it loads."""
    has_memory(monkeypatch, total=100, available=50)
    breathe(client, Presence(name="other@one", board="one", model="other", state="loaded"))
    with control_channels(client) as told:
        with agent._loading.room_for_trial(echo(), agent._setup):
            assert told() == [("other@one", "pause-parking 15")]
            agent._loading.pause_parking()
            assert told() == [("other@one", "pause-parking 15")]
        agent._loading.pause_parking()
        assert told() == []


def test_nothing_is_parked_while_a_further_worker_is_loaded(
    agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose room was found later; the first one's conversations wait as well."""
    has_memory(monkeypatch, total=100, available=50)
    agent._loading.load(echo())
    breathe(client, Presence(name="echo@one", board="one", model="echo", state="loaded"))
    client.zadd(keys.waiting("echo"), {"j": 1})
    with control_channels(client) as told:
        agent._loading.find_room_for_further(replace(echo(), instances=2))
        assert told() == [("echo@one", "pause-parking 15")]
    assert agent._workers.names("echo") == ["echo", "echo#2"]


def test_what_others_have_parked_stays_where_it_would_not_do(
    agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that wait for room are looked at every few seconds, and would have conversations read anew for nothing."""
    has_memory(monkeypatch, total=100, available=5)
    breathe(client, Presence(name="other@one", board="one", model="other", state="loaded", parked=MIB - 1))
    with client.pubsub(ignore_subscribe_messages=True) as worker:
        worker.subscribe(keys.control("other@one"))
        eventually(lambda: client.pubsub_numsub(keys.control("other@one"))[0][1] == 1, what="a worker that listens")
        with pytest.raises(OutOfMemory):
            agent._loading.load(echo())
        client.publish(keys.control("other@one"), "the end")
        message = eventually(lambda: worker.get_message(timeout=0.1), what="a word")
    assert message["data"] == b"the end"
