"""Pulls and other changes of a board's models, asked for from another process and followed to their ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.asking import Commander
from tasks.board import agent as module
from tasks.board.agent import Agent
from tasks.board.settings import BoardSettings
from tasks.commands import Command, CommandCode, Copy, Create, Delete, Pull, PullProgress, PullState, PullStep
from tasks.errors import CommandFailed
from tasks.feed import LiveFeed
from tasks.pulls import follow_pull
from tasks.settings import TaskSettings
from tests.fakes.hub import Fault, Hub, Repo
from tests.npu.tiny_model import NORMAL, tiny_model
from tests.stack import LIMIT, eventually

pytestmark = pytest.mark.anyio

REPO = "people/Tiny-1B-GGUF"
FILE = "Tiny-1B-Q8_0.gguf"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model that the board can describe; a test's own, since none is loaded here."""
    tokenizer = {"model": "gpt2", "pre": "gpt-2", "bos_token_id": 0, "merges": ["a b"]}
    model = tiny_model(tmp_path_factory.mktemp("tiny"), tokenizer, [(letter, NORMAL) for letter in "abcdefgh"])
    assert model.path is not None
    return model.path.read_bytes()


@pytest.fixture
def hub(weights: bytes) -> Iterator[Hub]:
    made = Hub()
    made.repos[REPO] = Repo({FILE: weights})
    with made.serving():
        yield made


@pytest.fixture
def board(
    client: redis.Redis, valkey_url: str, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Agent]:
    """An agent in a thread, whose workers do nothing but live. It looks by itself once an hour."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "LOOK", 3600.0)
    folder = tmp_path / "models" / "echo"
    folder.mkdir(parents=True)
    (folder / "manifest.toml").write_text('engine = "echo"\n')
    settings = TaskSettings(
        redis_url=valkey_url, data_dir=tmp_path / "data", models_dir=tmp_path / "models", board_name="one"
    )
    agent = Agent(settings, BoardSettings(hf_endpoint=hub.url))
    agent._workers.command = lambda _: ["/bin/sleep", "1000"]
    thread = threading.Thread(target=agent.run)
    thread.start()
    eventually(lambda: client.pubsub_numsub(keys.commands("one"))[0][1] == 1, what="a listening board")
    yield agent
    hub.may_go_on.set()
    agent.leave()
    thread.join(LIMIT)
    agent._workers.stop_all(0.0)


@dataclass
class Caller:
    """Whoever asks the board, as an API process does."""

    commander: Commander
    feed: LiveFeed

    async def ask(self, command: Command) -> object:
        return await self.commander.ask("one", command, LIMIT)

    async def follow(self, model: str = REPO, silence: float = 10.0) -> list[PullProgress]:
        return [step async for step in follow_pull(self.commander, self.feed, "one", model, silence=silence)]


@pytest.fixture
async def caller(board: Agent, valkey_url: str) -> AsyncIterator[Caller]:
    client = redis.asyncio.Redis.from_url(valkey_url)
    async with LiveFeed(client) as feed, Commander(client, feed) as commander:
        yield Caller(commander, feed)
    await client.aclose()


def known(client: redis.Redis) -> set[bytes]:
    return set(client.hkeys(keys.CARDS))


async def test_a_pull_is_followed_to_a_model_that_can_be_asked(
    caller: Caller, client: redis.Redis, weights: bytes
) -> None:
    """Its card is there when its end is told, though the board looks for models once an hour."""
    steps = await caller.follow()
    assert [step.step for step in steps[:1] + steps[-1:]] == [PullStep.CHOOSING, PullStep.DONE]
    assert b"tiny-1b/one" in known(client)
    assert max(step.completed for step in steps if step.step is PullStep.FETCHING) == len(weights)
    numbers = [step.number for step in steps]
    assert numbers == sorted(set(numbers)) and len({step.pull for step in steps}) == 1
    again = await caller.follow(f"hf.co/{REPO}")
    assert (again[-1].step, again[-1].message) == (PullStep.DONE, "tiny-1b is there already.")


async def test_a_pull_goes_on_without_its_listener_and_is_joined(caller: Caller, client: redis.Redis, hub: Hub) -> None:
    """A second one of the same name is the same pull, and fetches nothing twice."""
    hub.may_go_on.clear()
    hub.faults = [Fault(hold=1000)]
    async for step in follow_pull(caller.commander, caller.feed, "one", REPO):
        if step.step is PullStep.FETCHING:
            break
    steps: list[PullProgress] = []
    joins = asyncio.Event()

    async def join() -> None:
        async for step in follow_pull(caller.commander, caller.feed, "one", REPO.upper()):
            steps.append(step)
            joins.set()

    joined = asyncio.create_task(join())
    await asyncio.wait_for(joins.wait(), LIMIT)
    answer = msgspec.json.decode(await caller.commander.ask("one", Pull(REPO), LIMIT), type=PullProgress)
    assert answer.pull == step.pull
    hub.may_go_on.set()
    await joined
    assert {step.pull for step in steps} == {step.pull}
    assert len(hub.ranges()) == 1
    assert b"tiny-1b/one" in known(client)


async def test_what_is_missed_is_asked_for(board: Agent, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose messages are lost learns of the end all the same."""
    monkeypatch.setattr(board._inventory._pulls, "_client", SimpleNamespace(publish=lambda channel, message: 0))
    assert (await caller.follow(silence=0.2))[-1].step is PullStep.DONE


async def test_a_failed_pull_tells_why_and_leaves_nothing(caller: Caller, client: redis.Redis, hub: Hub) -> None:
    """With its code, for a front to choose a status by, and without folders of the board."""
    hub.repos[REPO].gated = True
    with pytest.raises(CommandFailed, match="is gated") as caught:
        await caller.follow()
    assert caught.value.code == CommandCode.SOURCE_FORBIDDEN
    for what, code in (
        ("nobody/nothing", CommandCode.SOURCE_FORBIDDEN),
        ("qwen9:1b", CommandCode.SOURCE_MISSING),
        ("/etc/passwd", CommandCode.SOURCE_FORBIDDEN),
        ("http://127.0.0.1/x.gguf", CommandCode.SOURCE_FORBIDDEN),
    ):
        with pytest.raises(CommandFailed) as caught:
            await caller.follow(what)
        assert caught.value.code == code, what
    assert known(client) == {b"echo/one"}
    with pytest.raises(CommandFailed) as caught:
        await caller.ask(PullState(REPO, "of another life"))
    assert caught.value.code == CommandCode.PULL_FORGOTTEN


async def test_a_failure_is_told_once(caller: Caller) -> None:
    """It is raised, so it is no step as well: a client that reads lines would get it twice."""
    steps: list[PullStep] = []

    async def follow() -> None:
        async for step in follow_pull(caller.commander, caller.feed, "one", "/etc/passwd"):
            steps.append(step.step)

    with pytest.raises(CommandFailed):
        await follow()
    assert PullStep.FAILED not in steps


async def test_models_are_made_copied_and_deleted(caller: Caller, client: redis.Redis) -> None:
    """Each is known, or not any more, when the reply comes."""
    await caller.ask(Create("mario", "echo", system="Be Mario."))
    assert known(client) == {b"echo/one", b"mario/one"}
    await caller.ask(Copy("mario", "luigi:v1"))
    assert known(client) == {b"echo/one", b"mario/one", b"luigi-v1/one"}
    with pytest.raises(CommandFailed, match="luigi-v1") as caught:
        await caller.ask(Delete("mario"))
    assert caught.value.code == CommandCode.MODEL_IN_USE
    await caller.ask(Delete("luigi:v1"))
    await caller.ask(Delete("mario"))
    assert known(client) == {b"echo/one"}
    with pytest.raises(CommandFailed) as caught:
        await caller.ask(Delete("mario"))
    assert caught.value.code == CommandCode.MODEL_MISSING
