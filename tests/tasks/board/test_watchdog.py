"""The watchdog: whoever lives and does not breathe is ended; whoever cannot be heard is not judged."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from npu.model import Model
from tasks import keys, presence, queue
from tasks.board import watchdog as module
from tasks.board.agent import Agent
from tasks.board.settings import BoardSettings
from tasks.board.watchdog import Watchdog
from tasks.board.workers import Workers
from tasks.connection import connect_async
from tasks.jobs import Lane, new_job_id
from tasks.presence import Presence
from tasks.requests import ChatRequest, Message
from tasks.settings import TaskSettings
from tasks.store import JobStore
from tests.fakes.clock import Clock
from tests.stack import LIMIT, eventually


class Kennel:
    """A watchdog over workers that do nothing but live; the test breathes for them, and lets time pass."""

    def __init__(self, client: redis.Redis, folder: Path, clock: Clock) -> None:
        self.client = client
        self.clock = clock
        self.workers = Workers(lambda _: ["/bin/sleep", "1000"], folder, 60.0, ())
        self.watchdog = Watchdog(client, "one", self.workers, silence=60, first_breath=120, ignoring=30)
        self.folder = folder
        self.full = False
        """Whether Redis has no memory left when the watchdog looks."""
        self.killed: list[str] = []
        self._breaths = 0
        self._kill = self.workers.kill
        self.workers.kill = self._note_and_kill  # type: ignore[method-assign]

    def _note_and_kill(self, name: str, pid: int) -> None:
        self.killed.append(name)
        self._kill(name, pid)

    def start(self, name: str) -> int:
        self.workers.start(Model(id=name, engine="echo", folder=self.folder), 0)
        return self.workers.living()[name]

    def breathe(self, name: str, **said: object) -> None:
        self._breaths += 1
        payload = json.dumps({"name": f"{name}@one", "board": "one", **said})
        self.client.hset(keys.PRESENCE, f"{name}@one", f"{self._breaths}:{payload}")

    def wait(self, name: str, *, jobs: int = 1, calls: int = 1) -> None:
        """Have so many jobs wait, and so many calls lie in the queue."""
        self.client.delete(keys.waiting(name), keys.calls(name))
        for index in range(jobs):
            self.client.zadd(keys.waiting(name), {f"job{index}": index})
        for _ in range(calls):
            queue.send(self.client, name)

    def passes(self, seconds: int) -> None:
        """Time, with a look each five seconds."""
        for _ in range(0, seconds, 5):
            self.clock.now += 5
            self.client.config_set("maxmemory", 1 if self.full else "512mb")
            try:
                self.watchdog.look()
            finally:
                self.client.config_set("maxmemory", "512mb")


@pytest.fixture
def kennel(client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kennel]:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    made = Kennel(client, tmp_path, clock)
    yield made
    made.workers.stop_all(0.0)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_silence_is_the_end(kennel: Kennel, caplog: pytest.LogCaptureFixture) -> None:
    """After the limit, not before; of the silent one only; and it is said."""
    silent = kennel.start("silent")
    kennel.start("busy")
    kennel.passes(5)
    kennel.breathe("silent")
    for _ in range(13):
        kennel.breathe("busy")
        kennel.passes(5)
    assert kennel.killed == []
    kennel.client.hdel(keys.PRESENCE, "silent@one")  # the roster forgets who is silent; that is no breath
    kennel.breathe("busy")
    kennel.passes(5)
    eventually(lambda: gone(silent), what="the end of the silent one")
    assert kennel.killed == ["silent"]
    assert f"the worker of silent pid={silent} lives but has not breathed for 65 s" in caplog.text


def test_a_successor_is_not_taken_for_who_was_stuck(kennel: Kennel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came while Redis was asked."""
    kennel.start("m")
    kennel.passes(125)
    assert kennel.killed == []
    read, new = kennel.watchdog._read, 0

    def replaced_meanwhile(workers: list[str]) -> dict[str, bytes | None]:
        nonlocal new
        found = read(workers)
        kennel.workers.stop("m", 0.0)
        new = kennel.start("m")
        return found

    monkeypatch.setattr(kennel.watchdog, "_read", replaced_meanwhile)
    kennel.passes(5)
    assert kennel.killed == ["m"] and kennel.workers.living() == {"m": new} and not gone(new)


def test_a_new_worker_gets_longer(kennel: Kennel) -> None:
    """It breathes when it has started. Its predecessor's last breath is not its own."""
    kennel.breathe("m")
    pid = kennel.start("m")
    kennel.passes(125)
    assert kennel.killed == []
    kennel.passes(5)
    eventually(lambda: gone(pid), what="the end of one that never breathed")


def test_a_successor_is_judged_by_itself(kennel: Kennel) -> None:
    """Its time begins when it is first seen."""
    pid = kennel.start("m")
    kennel.passes(5)
    kennel.breathe("m")
    kennel.passes(60)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid), what="a death")
    kennel.workers.stop("m", LIMIT)
    kennel.start("m")
    kennel.passes(120)
    assert kennel.killed == []


def test_nobody_is_judged_after_an_outage(kennel: Kennel) -> None:
    """One whole period is given first: while Redis is away nobody can be heard."""
    pid = kennel.start("m")
    kennel.passes(5)
    kennel.breathe("m")
    kennel.passes(60)
    kennel.watchdog.forgive()
    kennel.passes(60)
    assert kennel.killed == []
    kennel.passes(5)
    eventually(lambda: gone(pid), what="the end of the silent one")


def test_a_look_that_comes_late_judges_nobody(kennel: Kennel) -> None:
    """Whoever was stopped together with its agent has had no time to breathe."""
    kennel.start("m")
    kennel.passes(5)
    kennel.breathe("m")
    kennel.passes(5)
    kennel.clock.now += 3600
    kennel.watchdog.look()
    kennel.passes(60)
    assert kennel.killed == []


def test_a_free_worker_that_leaves_calls_lying_is_the_end(kennel: Kennel, caplog: pytest.LogCaptureFixture) -> None:
    """After the limit, not before; of the one that has calls only; and it is said."""
    deaf = kennel.start("deaf")
    kennel.start("free")
    for _ in range(8):
        kennel.wait("deaf")
        for name in ("deaf", "free"):
            kennel.breathe(name, state="loaded", answered=3)
        assert kennel.killed == []
        kennel.passes(5)
    for name in ("deaf", "free"):
        kennel.breathe(name, state="loaded", answered=3)
    kennel.passes(5)
    eventually(lambda: gone(deaf), what="the end of the deaf one")
    assert kennel.killed == ["deaf"]
    assert f"the worker of deaf pid={deaf} is free but has taken none of the calls that wait for 35 s" in caplog.text


class Innocent:
    """What a worker and the world about it may do before each look, the number of which is told."""

    @staticmethod
    def it_answers_one_now_and_then(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state="loaded", answered=look // 4)

    @staticmethod
    def it_is_busy(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state="busy", answered=None if look % 5 else 0)

    @staticmethod
    def it_loads(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state="loading" if look % 5 else "idle", answered=0)

    @staticmethod
    def nothing_waits(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state="loaded", answered=0)
        kennel.wait("m", jobs=0)

    @staticmethod
    def the_sweep_has_still_to_top_up_the_calls(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state="loaded", answered=0)
        kennel.wait("m", calls=0)

    @staticmethod
    def others_take_the_calls(kennel: Kennel, look: int) -> None:
        kennel.wait("m", calls=1 if look % 5 else 0)
        if look % 5:
            kennel.breathe("m", state="loaded", answered=0)

    @staticmethod
    def redis_was_away(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state="loaded", answered=0)
        if look % 5 == 0:
            kennel.watchdog.forgive()

    @staticmethod
    def the_memory_is_full(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state="loaded", answered=0)
        kennel.full = look % 5 == 0

    @staticmethod
    def it_was_held_up_with_all_it_does(kennel: Kennel, look: int) -> None:
        if look % 4 == 0:
            kennel.breathe("m", state="loaded", answered=0)

    @staticmethod
    def it_is_of_another_version(kennel: Kennel, look: int) -> None:
        kennel.breathe("m", state=1)


@pytest.mark.parametrize("before", [value.__func__ for value in vars(Innocent).values() if hasattr(value, "__func__")])
def test_whoever_may_leave_calls_lying_is_left_alone(kennel: Kennel, before: Callable[[Kennel, int], None]) -> None:
    """However long it goes on."""
    kennel.start("m")
    kennel.wait("m")
    for look in range(18):
        before(kennel, look)
        kennel.passes(5)
    assert kennel.killed == []


@pytest.fixture
def agent(
    client: redis.Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Agent, threading.Thread]]:
    """A real agent with a real worker, and short limits."""
    folder = tmp_path / "models" / "echo"
    folder.mkdir(parents=True)
    (folder / "manifest.toml").write_text('engine = "echo"\nid = "echo"\n')
    settings = TaskSettings(
        redis_url=valkey_url, data_dir=tmp_path / "data", models_dir=tmp_path / "models", board_name="one"
    )
    for name in ("redis_url", "data_dir", "models_dir", "board_name"):
        monkeypatch.setenv(f"ROCKCHIPLLAMA_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setattr("tasks.board.agent.WATCH", 0.5)
    made = Agent(settings, BoardSettings())
    made._watchdog = Watchdog(
        client, "one", made._workers, silence=4 * presence.BREATH, first_breath=LIMIT, ignoring=4 * presence.BREATH
    )
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made, thread
    made.leave()
    thread.join(LIMIT)
    made._workers.stop_all(0.0)


def worker(agent: Agent) -> psutil.Process:
    eventually(lambda: agent._workers.living(), what="a worker")
    return psutil.Process(agent._workers.living()["echo"])


def breath(client: redis.Redis) -> Presence | None:
    raw = client.hget(keys.PRESENCE, "echo@one")
    if raw is None:
        return None
    return Presence(**json.loads(bytes(raw).partition(b":")[2]))  # type: ignore[arg-type]


def test_a_stopped_worker_is_replaced(
    agent: tuple[Agent, threading.Thread], client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A real one, whose child was stopped while it served: parent and child end, and another breathes soon."""
    first = worker(agent[0])
    eventually(lambda: (breath(client) or Presence(name="", board="")).state == "loaded", what="a loaded model")
    [child] = [process for process in first.children() if process.cmdline()[-2:] == ["worker", "echo"]]
    child.suspend()
    eventually(lambda: gone(first.pid) and gone(child.pid), what="the end of the stuck worker")
    assert "lives but has not breathed" in caplog.text
    eventually(lambda: agent[0]._workers.living().get("echo", first.pid) != first.pid, what="another worker")
    client.delete(keys.PRESENCE)
    eventually(lambda: breath(client) is not None, what="its breath")


def test_a_worker_whose_parent_is_stopped_is_replaced(
    agent: tuple[Agent, threading.Thread], client: redis.Redis, valkey_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its child breathes on, so it shows only by the calls that it leaves lying; the job is answered by the next one."""
    first = worker(agent[0])
    eventually(lambda: (breath(client) or Presence(name="", board="")).state == "loaded", what="a loaded model")
    first.suspend()
    job = new_job_id()

    async def accept() -> None:
        store = JobStore(connect_async(valkey_url), queue_limit=20, job_ttl=600, deadline=600)
        request = ChatRequest(messages=(Message("user", "hello"),))
        await store.accept(job, "echo", request, lane=Lane.INTERACTIVE, owner="", deadline=None)

    asyncio.run(accept())
    queue.send(client, "echo")  # the first one goes to whom Redis takes for a listener still
    eventually(lambda: gone(first.pid), what="the end of the deaf worker")
    assert "is free but has taken none of the calls" in caplog.text
    eventually(lambda: client.hget(keys.job(job), "state") == b"finished", what="the answer")
    assert client.hget(keys.job(job), "failures") is None
