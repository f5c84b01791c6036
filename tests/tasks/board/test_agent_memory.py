"""A board never loads more than fits into its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from npu.engines.echo import MEMORY_BYTES
from npu.errors import OutOfMemory
from npu.hardware import Memory
from npu.model import Model
from tasks import keys
from tasks.board import agent as module
from tasks.board.agent import Agent
from tasks.board.settings import BoardSettings
from tasks.settings import TaskSettings
from tests.stack import eventually

MIB = 1 << 20


@pytest.fixture
def agent(client: redis.Redis, valkey_url: str, tmp_path: Path) -> Iterator[Agent]:
    """An agent whose workers do nothing but live. It keeps a tenth of the memory free."""
    settings = TaskSettings(redis_url=valkey_url, data_dir=tmp_path, models_dir=tmp_path, board_name="one")
    made = Agent(settings, BoardSettings(memory_reserve=0.1))
    made._workers.command = lambda _: ["/bin/sleep", "1000"]
    yield made
    made._workers.stop_all(0.0)


def has_memory(monkeypatch: pytest.MonkeyPatch, total: float, available: float) -> None:
    monkeypatch.setattr(module, "read_memory", lambda: Memory(int(total * MIB), int(available * MIB)))


def echo(name: str = "echo") -> Model:
    """It is estimated at one MiB."""
    assert MEMORY_BYTES == MIB
    return Model(id=name, engine="echo", folder=Path("/nowhere"))


def test_a_model_that_does_not_fit_is_refused_with_the_figures(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs, what there is, what is free; no worker is started."""
    has_memory(monkeypatch, total=4000, available=1200 - 799.5)  # 400.5 MiB, of which 400 are the reserve
    with pytest.raises(OutOfMemory) as refused:
        agent.load(echo())
    for figure in ("'echo'", "1 MiB", "4000 MiB", "only 0 MiB"):
        assert figure in str(refused.value)
    assert not agent._workers.has("echo")


def test_a_model_that_fits_is_loaded(agent: Agent, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last byte; a worker is started, and told to load as soon as it listens."""
    has_memory(monkeypatch, total=100, available=11)
    agent.load(echo())
    assert agent._workers.has("echo")
    agent._tell_to_load()  # nobody listens yet
    with client.pubsub(ignore_subscribe_messages=True) as worker:
        worker.subscribe(keys.control("echo@one"))
        told: list[bytes] = []

        def listen() -> bool:
            agent._tell_to_load()
            message = worker.get_message(timeout=0.1)
            told.extend([message["data"]] if message else [])
            return bool(told)

        eventually(listen, what="the word to load")
        agent._tell_to_load()  # told once
        assert worker.get_message(timeout=0.1) is None
    assert told == [b"load"]


def test_models_that_are_still_loading_count(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not miss their memory yet, so what they were estimated at is set aside."""
    has_memory(monkeypatch, total=3, available=3)
    agent.load(echo("one"))
    agent.load(echo("two"))
    with pytest.raises(OutOfMemory):
        agent.load(echo("three"))
    agent.unload(echo("one"))
    agent.load(echo("three"))


def test_a_model_that_is_there_needs_no_more(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it again is not refused, however little is free by now."""
    has_memory(monkeypatch, total=100, available=50)
    agent.load(echo())
    has_memory(monkeypatch, total=100, available=0)
    agent.load(echo())
    assert agent._workers.reserved() == MIB


def test_a_smaller_context_is_the_advice(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what a user can do."""
    has_memory(monkeypatch, total=1, available=1)
    with pytest.raises(OutOfMemory, match="Unload another model, or set a smaller context_length"):
        agent.load(echo())
