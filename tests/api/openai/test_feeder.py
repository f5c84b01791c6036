"""The feeding of a batch where something goes wrong in it, step by step: a real Valkey and real files, and answers at once."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio

from api.openai import feeding as feeding_module
from api.openai.feeder import LEAST_AHEAD, Feeder
from api.openai.feeding import Feeding
from api.settings import ApiSettings
from api.storage import Check, LocalStorage
from tasks import keys
from tasks.batch import BatchBook, BatchOrder, BatchState, FeederReplaced, Hold, Progress, Step
from tasks.card import Card
from tasks.disk import Disk
from tasks.errors import JobNotFound, NotOnDisk
from tasks.events import Event, Finished, FinishReason, Queued, Started, TextDelta, Timings, Usage
from tasks.files import FileBook, StoredFile, new_file_id
from tasks.jobs import new_job_id
from tasks.roster import ModelStatus
from tasks.settings import TaskSettings
from tests.api.site import RealWorld, site
from tests.stack import LIMIT

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
LEASE = 30.0
MODEL = ModelStatus(card=Card(id="echo", board="b"), served=True, loaded=True, loading=False, waiting=0)


class Models:
    """One model, that one worker serves."""

    def models(self) -> list[ModelStatus]:
        """All of them."""
        return [MODEL]

    def workers(self, _model: str) -> list[str]:
        """Who serves it."""
        return ["w"]

    def resolve(self, _name: str | None) -> ModelStatus:
        """The model."""
        return MODEL

    async def refresh(self) -> None:
        """Look again."""


class Queue:
    """A queue that answers at once, but what a test holds up."""

    def __init__(self) -> None:
        self.store = self
        self.accepted: list[str] = []
        self.cancelled: list[str] = []
        self.ended: set[str] = set()
        self.stuck = False
        """The first job takes longer than all others."""
        self.accepts, self.answers, self.asked, self.missed = (asyncio.Event() for _ in range(4))
        self.accepts.set()
        self.answers.set()

    async def submit(self, _model: str | None, _request: object, job: str, **_more: object) -> ModelStatus:
        """Accept a job, once `accepts` lets it."""
        self.asked.set()
        await self.accepts.wait()
        if job not in self.accepted:
            self.accepted.append(job)
        return MODEL

    async def outcome(self, job: str) -> list[Event]:
        """All it said, once `answers` lets it."""
        if job in self.cancelled:
            return [Queued(), Finished(FinishReason.CANCELLED, Usage(0, 0), Timings())]
        await self.answers.wait()
        self.ended.add(job)
        if self.stuck and job == self.accepted[0]:
            await asyncio.Event().wait()
        return [Queued(), Started("w", "b"), TextDelta("hi"), Finished(FinishReason.STOP, Usage(3, 1), Timings())]

    async def cancel(self, job: str, _reason: str) -> None:
        """End a job."""
        if job not in self.accepted:
            self.missed.set()
            raise JobNotFound(job)
        if job not in self.ended:
            self.cancelled.append(job)


class World:
    """One batch, and whoever feeds it."""

    def __init__(self, client: redis.asyncio.Redis, folder: Path) -> None:
        self.client = client
        self.batches, self.files = BatchBook(client), FileBook(client)
        self.storage, self.queue = LocalStorage(folder), Queue()
        self.folder = folder

    async def begin(self, lines: int, window: float = 3600.0) -> None:
        """Accept a batch of so many lines."""
        body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
        text = "".join(
            json.dumps({"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body}) + "\n" for n in range(lines)
        )

        async def chunks() -> AsyncIterator[bytes]:
            yield text.encode()

        self.order = BatchOrder(
            id=f"batch_{new_job_id()}",
            owner="",
            endpoint=CHAT,
            input_file=new_file_id(),
            output_file=new_file_id(),
            error_file=new_file_id(),
            window=window,
            window_said="1h",
            created=0,
        )
        await self.storage.create(self.order.input_file, chunks())
        assert await self.batches.create(self.order)

    async def hold(self, process: str = "one", lease: float = LEASE) -> Hold:
        """Take the batch, as that process."""
        hold = await self.batches.take(self.order.id, process, lease)
        assert hold is not None
        return hold

    def feeder(self, hold: Hold, storage: LocalStorage | None = None) -> Feeder:
        """Somebody who feeds it."""
        return Feeder(
            self.order,
            hold,
            relay=cast(Any, self.queue),
            roster=cast(Any, Models()),
            files=self.files,
            storage=storage or self.storage,
            settings=ApiSettings(),
            lease=1.0,
        )

    async def progress(self) -> Progress:
        """How far it is."""
        return (await self.batches.get(self.order.id)).progress

    def lines(self, name: str) -> list[str]:
        """The custom_ids of a file of its, sorted."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return sorted((json.loads(line)["custom_id"] for line in text.splitlines()), key=lambda name: int(name[1:]))

    async def lapse(self) -> None:
        """Nobody holds it any more, though whoever did may not know."""
        await cast(Any, self.client.hset(keys.batch(self.order.id), "lease", 0))


@pytest.fixture
async def world(aclient: redis.asyncio.Redis, tmp_path: Path) -> AsyncIterator[World]:
    """An empty Valkey and an empty folder."""
    yield World(aclient, tmp_path)
    await aclient.aclose()


def names(count: int) -> list[str]:
    """The custom_ids of so many lines."""
    return [f"r{n}" for n in range(count)]


class FreezesBefore(LocalStorage):
    """A process that stands still when it is about to write."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.frozen, self.wakes = asyncio.Event(), asyncio.Event()

    async def append(self, name: str, at: int, data: bytes, mine: Check) -> None:
        """Write, once it wakes."""
        self.frozen.set()
        await self.wakes.wait()
        await super().append(name, at, data, mine)


async def test_a_feeder_that_froze_and_wakes_writes_over_nothing(world: World) -> None:
    """Its lease lapsed, another one has gone on and ended the batch: the files stay as that one has left them."""
    await world.begin(40)
    storage = FreezesBefore(world.folder)
    zombie = asyncio.create_task(world.feeder(await world.hold("one"), storage).run())
    await storage.frozen.wait()
    await world.lapse()
    await world.feeder(await world.hold("two")).run()
    assert world.lines(world.order.output_file) == names(40)
    storage.wakes.set()
    with pytest.raises(FeederReplaced):
        await zombie
    assert world.lines(world.order.output_file) == names(40)
    progress = await world.progress()
    assert (progress.state, progress.total, progress.completed) == (BatchState.COMPLETED, 40, 40)


async def test_one_process_at_a_time_is_at_a_file(world: World) -> None:
    """Who froze after it was let in keeps others out until it has written, and they drop that."""
    inside, wakes = asyncio.Event(), asyncio.Event()

    async def freezes() -> None:
        inside.set()
        await wakes.wait()

    async def awake() -> None:
        assert wakes.is_set()

    first = asyncio.create_task(world.storage.append("f", 0, b"of a zombie", freezes))
    await inside.wait()
    second = asyncio.create_task(LocalStorage(world.folder).append("f", 0, b"good", awake))
    await asyncio.sleep(0.2)
    wakes.set()
    await asyncio.gather(first, second)
    assert (world.folder / "f").read_bytes() == b"good"


async def test_what_was_written_but_not_counted_is_in_no_file(world: World) -> None:
    """The process died in between, and the batch was cancelled before another went on: each line is in one file, once, with
    the answer that there was."""
    await world.begin(40)

    class Dies(Exception):
        pass

    hold = await world.hold()
    step = hold.step

    async def dies(each: Step) -> tuple[bool, float]:
        if each.done:
            raise Dies
        return await step(each)

    hold.step = dies  # type: ignore[method-assign, assignment]
    with pytest.raises(Dies):
        await world.feeder(hold).run()
    written = world.lines(world.order.output_file)
    assert written
    await world.batches.cancel(world.order.id)
    await world.feeder(await world.hold()).run()
    progress = await world.progress()
    ends = progress.state, progress.completed, progress.failed
    assert ends == (BatchState.CANCELLED, len(written), 40 - len(written))
    assert world.lines(world.order.output_file) == written
    assert not set(world.lines(world.order.error_file)) & set(written)


async def test_a_step_that_is_sent_twice_is_written_once(world: World) -> None:
    """As a client does whose reply was lost; and a hold of before adds nothing to a later one of the same process."""
    await world.begin(1)
    hold = await world.hold()
    twin = copy.copy(hold)
    for each in (hold, twin):
        await each.step(Step(add={"completed": 1}))
        await each.step(Step())
    assert (await world.progress()).completed == 1
    later = await world.hold()
    with pytest.raises(FeederReplaced):
        await hold.step(Step(add={"completed": 1}))
    await later.step(Step(add={"completed": 1}))
    assert (await world.progress()).completed == 2


async def test_a_redis_that_came_back_without_its_last_moment_is_noticed(world: World) -> None:
    """Whoever feeds the batch begins again from what is there, and no line is lost or repeated."""
    await world.begin(200)
    hold = await world.hold()
    step = hold.step

    async def forgotten(each: Step) -> tuple[bool, float]:
        held = [keys.batch(world.order.id), keys.batch_items(world.order.id)]
        before = {name: await world.client.dump(name) for name in held}
        said = await step(each)
        if each.done:
            for name, value in before.items():
                await world.client.restore(name, 0, cast(bytes, value), replace=True)
        return said

    hold.step = forgotten  # type: ignore[method-assign, assignment]
    with pytest.raises(FeederReplaced):
        await world.feeder(hold).run()
    assert (await world.progress()).completed == 0
    assert world.lines(world.order.output_file)
    await world.feeder(await world.hold()).run()
    progress = await world.progress()
    assert (progress.completed, progress.failed) == (200, 0)
    assert world.lines(world.order.output_file) == names(200)


async def test_an_item_that_is_being_accepted_when_its_batch_is_cancelled_runs_no_more(world: World) -> None:
    """It waits for its model to be loaded, so it is not known yet when the others are cancelled."""
    await world.begin(1)
    world.queue.accepts.clear()
    feeding = asyncio.create_task(world.feeder(await world.hold()).run())
    await world.queue.asked.wait()
    await world.batches.cancel(world.order.id)
    world.queue.answers.clear()
    await asyncio.wait_for(world.queue.missed.wait(), 60)
    world.queue.accepts.set()
    await asyncio.wait_for(feeding, 60)
    assert world.queue.cancelled == world.queue.accepted
    assert world.lines(world.order.error_file) == ["r0"]


async def test_a_batch_that_is_cancelled_while_it_is_checked_runs_nothing(world: World) -> None:
    """And has no files, since nobody knows what all of its lines are; its state is never said to be another one's again."""
    await world.begin(40)
    hold = await world.hold()
    await world.batches.cancel(world.order.id)
    await world.feeder(hold).run()
    progress = await world.progress()
    assert (progress.state, progress.total, progress.failed) == (BatchState.CANCELLED, 0, 0)
    assert not world.queue.accepted
    await world.begin(1)
    hold = await world.hold()
    await world.batches.cancel(world.order.id)
    await hold.step(Step(put={"state": BatchState.IN_PROGRESS.value, "total": 1}))
    assert (await world.progress()).state is BatchState.CANCELLING


async def test_an_input_that_is_gone_holds_up_no_end(world: World) -> None:
    """While the batch goes on, it waits for the file to be there again; once it is cancelled, it ends without."""
    await world.begin(40)
    await (await world.hold()).step(Step(put={"state": "in_progress", "total": 40}, begun={"1": f"{new_job_id()} 0"}))
    await world.storage.delete(world.order.input_file)
    with pytest.raises(FileNotFoundError):
        await world.feeder(await world.hold()).run()
    await world.batches.cancel(world.order.id)
    await world.feeder(await world.hold()).run()
    assert (await world.progress()).state is BatchState.CANCELLED


async def test_an_input_whose_time_is_over_stays_for_its_batch(world: World) -> None:
    """It goes when the batch has ended."""
    await world.begin(1)
    source = StoredFile(
        id=world.order.input_file, owner="", filename="x", purpose="batch", size=1, created=0, expires_after=0
    )
    await world.files.add(source)
    feeding = Feeding(
        *(world.batches, world.files, world.storage, cast(Any, world.queue), cast(Any, Models()), ApiSettings(), LEASE)
    )
    await asyncio.sleep(0.01)
    assert await world.files.due() == [source.id]
    await feeding._forget()
    assert (world.folder / source.id).exists()
    await world.feeder(await world.hold()).run()
    await feeding._forget()
    assert not (world.folder / source.id).exists()


async def test_what_is_told_during_a_look_is_looked_for_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that comes when all have been read already does not wait for the next look."""
    monkeypatch.setattr(feeding_module, "LOOK", 10 * LIMIT)
    feeding = Feeding(
        *(world.batches, world.files, world.storage, cast(Any, world.queue), cast(Any, Models()), ApiSettings(), LEASE)
    )
    look, looks, again = feeding._look, 0, asyncio.Event()

    async def comes_behind() -> None:
        nonlocal looks
        await look()
        looks += 1
        feeding.look() if looks == 1 else again.set()

    monkeypatch.setattr(feeding, "_look", comes_behind)
    async with asyncio.timeout(LIMIT), feeding.running():
        await again.wait()


async def test_a_batch_that_is_forgotten_during_a_look_breaks_nothing(
    world: World, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, whose clock was first: neither the look, nor the list of those who ask for it then."""
    await world.begin(1)
    every = await world.batches.every()

    async def read_before() -> list[BatchOrder]:
        return every

    monkeypatch.setattr(BatchBook, "every", lambda self: read_before())
    await world.batches.remove(world.order.id)
    feeding = Feeding(
        *(world.batches, world.files, world.storage, cast(Any, world.queue), cast(Any, Models()), ApiSettings(), LEASE)
    )
    await feeding._look()
    assert await feeding._being_read() == set()
    with site(RealWorld(TaskSettings(redis_url=valkey_url, data_dir=world.folder)), drain=0) as place:
        listed = place.http.get("/v1/batches")
    assert (listed.status_code, listed.json()["data"]) == (200, [])


async def test_what_cannot_be_written_lets_no_more_lines_in(world: World) -> None:
    """However often a full disk is tried again, no more lines are on their way than may be."""
    await world.begin(100)

    class Full(LocalStorage):
        async def append(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

    world.queue.stuck = True
    for _ in range(2):
        with pytest.raises(OSError, match="space"):
            await world.feeder(await world.hold(), Full(world.folder)).run()
    world.queue.stuck = False
    assert await cast(Any, world.client.hlen(keys.batch_items(world.order.id))) <= LEAST_AHEAD
    await world.feeder(await world.hold()).run()
    assert world.lines(world.order.output_file) == names(100)


async def test_a_disk_that_is_stuck_ends_no_batch_that_was_accepted_before(world: World) -> None:
    """A call that is sent again with its key is refused; the batch it made goes on."""
    await world.begin(1)

    class Stuck(Disk):
        async def has_all(self) -> None:
            raise NotOnDisk("stuck")

    stuck = BatchBook(world.client, Stuck(world.client))
    again = BatchOrder(**{**{n: getattr(world.order, n) for n in world.order.__struct_fields__}, "created": 1})
    with pytest.raises(NotOnDisk):
        await stuck.create(again)
    assert not (await world.progress()).cancel
    with pytest.raises(NotOnDisk):
        await stuck.create(world.order)
    assert (await world.progress()).cancel


async def test_how_far_batches_are_is_told_until_they_have_ended(world: World) -> None:
    """For those who watch the service."""
    await world.begin(2)
    hold = await world.hold()
    await hold.step(Step(put={"state": "in_progress", "total": 2}, add={"completed": 1}))
    [progress] = await world.batches.unfinished()
    assert (progress.state, progress.total, progress.completed, progress.failed) == (BatchState.IN_PROGRESS, 2, 1, 0)
    await hold.step(Step(put={"state": "completed"}, over=True))
    assert await world.batches.unfinished() == []
