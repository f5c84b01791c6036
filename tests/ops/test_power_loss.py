"""A plug that is pulled at any moment: whatever was on the disk by then is there afterwards and whole, read by Valkey itself.

What the disk holds of the queue's file is all up to its last sync, and behind that any mixture of pages that were written,
are zeros, or are not there. `up` brings the file to the disk once a second, so that is what was acknowledged a second before.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from ops.up.append_only import mend
from ops.up.store import FOLDER, server_binary
from tasks import api_keys, keys
from tasks.api_keys import Scope
from tasks.claims import Claim, claim_next, hand_back
from tasks.connection import connect_async
from tasks.events import ChoiceEnded, Finished, FinishReason, Numbered, Started, TextDelta, Timings, Usage
from tasks.jobs import ENDED, JobState, Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import ClaimLost, EventWriter, RecordedPiece
from tests.ops.test_append_only import recorded, valkey
from tests.stack import eventually

PAGE = 4096
STEPS = 80
HELLO = ChatRequest((Message("user", "hello"),))


@dataclass
class Moment:
    """What clients had been told when the newest file of the queue was `size` bytes long."""

    size: int
    events: dict[str, int]
    """Of each job, how many."""
    keys: set[str]


@dataclass
class History:
    """What happened in one queue, up to the pulled plug."""

    folder: Path
    moments: list[Moment] = field(default_factory=list)
    events: dict[str, list[Numbered]] = field(default_factory=dict)
    """All that was said of each job."""

    @property
    def newest(self) -> str:
        """The name of the file that was being written."""
        return max(path.name for path in (self.folder / FOLDER).glob("*.incr.aof"))


class Busy:
    """Does with a queue what a service does, one step after another, as dice say."""

    def __init__(self, client: redis.Redis, history: History, seed: int) -> None:
        self.client = client
        self.history = history
        self.dice = random.Random(seed)
        self.store = JobStore(connect_async(f"unix://{history.folder}/s"), queue_limit=1000, job_ttl=600, deadline=600)
        self.jobs: list[str] = []
        self.held: dict[str, tuple[Claim, EventWriter]] = {}
        self.keys: list[str] = []
        self.writers = ExitStack()

    async def step(self) -> None:
        steps = [self.accept, self.accept, self.claim, self.claim, self.say, self.say, self.say, self.end]
        await self.dice.choice([*steps, self.hand_back, self.cancel, self.leave, self.make_key, self.revoke_key])()

    async def accept(self) -> None:
        self.jobs.append(job := new_job_id())
        reader, lane = self.dice.choice([None, "p/1"]), self.dice.choice([*Lane])
        await self.store.accept(job, "echo", HELLO, lane=lane, owner="", reader=reader, grace=self.dice.choice([0, 60]))

    async def claim(self) -> None:
        held = claim_next(self.client, "echo", worker="w", board="b", child=1, call_id="c", lease=600)
        if isinstance(held, Claim):
            writer = EventWriter(self.client, held.job, "echo", held.token, held.seq, lambda: None, patience=5)
            self.writers.enter_context(writer)
            writer.write((Started("w", "b"),))
            self.held[held.job] = held, writer

    async def say(self) -> None:
        for _, writer in self.some_held():
            for letter in "abc":
                writer.write((TextDelta(letter),), RecordedPiece(0, ord(letter), letter.encode()))

    async def end(self) -> None:
        for claim, writer in self.some_held():
            writer.write((ChoiceEnded(0, FinishReason.STOP),))
            writer.end(Finished(FinishReason.STOP, Usage(1, 2), Timings()))
            del self.held[claim.job]

    async def hand_back(self) -> None:
        for claim, _ in self.some_held():
            paused = self.dice.choice([None, 1.0])
            hand_back(
                *(self.client, "echo", claim.job, claim.token, "it fell"),
                crashed=paused is None,
                paused_after=paused,
            )
            del self.held[claim.job]

    async def cancel(self) -> None:
        if self.jobs:
            await self.store.cancel(self.dice.choice(self.jobs), "by request")

    async def leave(self) -> None:
        if self.jobs:
            await self.store.leave(self.dice.choice(self.jobs), "p/1")

    async def make_key(self) -> None:
        name = f"key{len(self.history.moments)}"
        api_keys.create(self.client, name, [Scope.INFERENCE])
        self.keys.append(name)

    async def revoke_key(self) -> None:
        if self.keys:
            api_keys.revoke(self.client, self.keys.pop(self.dice.randrange(len(self.keys))))

    def some_held(self) -> Iterator[tuple[Claim, EventWriter]]:
        """One that a worker holds, if there is any. Whose claim is gone learns it by writing."""
        if self.held:
            job = self.dice.choice(sorted(self.held))
            try:
                yield self.held[job]
            except ClaimLost:
                self.held.pop(job, None)

    def note(self) -> None:
        """Everything so far was acknowledged, and has gone to the file."""
        for _, writer in self.held.values():
            eventually(lambda writer=writer: not writer._events or writer.failure, what="an append")  # type: ignore[misc]
        eventually(lambda: self.client.info("persistence")["aof_buffer_length"] == 0, what="a written file")
        newest = self.history.folder / FOLDER / self.history.newest
        events = {job: recorded(self.client, job) for job in self.jobs}
        self.history.events |= events
        self.history.moments.append(
            Moment(newest.stat().st_size, {job: len(found) for job, found in events.items()}, set(self.keys))
        )

    def rewrite(self) -> None:
        """All that is known goes into a new first file, which is on the disk before it is used."""
        before = self.history.newest
        self.client.bgrewriteaof()
        eventually(lambda: self.history.newest != before, what="a new file")
        eventually(lambda: not self.client.info("persistence")["aof_rewrite_in_progress"], what="the rewriting's end")
        for moment in self.history.moments:
            moment.size = 0


@pytest.fixture(scope="module", params=[1, 2])
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> History:
    """One with a file that grew from the beginning, and one whose files were rewritten half-way."""
    history = History(tmp_path_factory.mktemp("history"))

    async def live(busy: Busy) -> None:
        for number in range(STEPS):
            await busy.step()
            busy.note()
            if request.param == 2 and number == STEPS // 2:
                busy.rewrite()

    with valkey(history.folder) as client:
        busy = Busy(client, history, request.param)
        with busy.writers:
            asyncio.run(live(busy))
    return history


def pull(path: Path, synced: int, dice: random.Random) -> None:
    """Leave of a file what a power cut leaves when only `synced` bytes of it were brought to the disk."""
    written = path.read_bytes()
    data = bytearray(written[: dice.choice([synced, len(written), dice.randint(synced, len(written))])])
    for page in range(synced // PAGE, len(data) // PAGE + 1):
        if dice.random() < 0.5:
            begin, end = max(synced, page * PAGE), min(len(data), (page + 1) * PAGE)
            data[begin:end] = bytes(max(0, end - begin))
    data += bytes(dice.choice([0, 0, dice.randint(1, 3 * PAGE)]))  # the file had been made longer already
    path.write_bytes(data)


def check(client: redis.Redis, history: History, told: Moment) -> None:
    """Whatever was acknowledged is there, whole, and goes on; nothing is there by half."""
    records = {key.decode()[4:-1] for key in client.keys(keys.JOBS)}
    assert set(told.events) <= records <= set(history.events)
    assert len(records) <= int(client.get(keys.ORDER) or 0)
    waiting = {member.decode() for member in client.zrange(keys.waiting("echo"), 0, -1)}
    running = {member.decode() for member in client.zrange(keys.running("echo"), 0, -1)}
    assert waiting | running <= records
    for job in records:
        state = JobState((client.hget(keys.job(job), "state") or b"").decode())
        assert (state is JobState.QUEUED, state is JobState.RUNNING) == (job in waiting, job in running)
        found = recorded(client, job)
        assert found == history.events[job][: len(found)]
        assert len(found) >= max(1, told.events.get(job, 0))
        for key in (keys.job(job), keys.events(job)):
            assert (client.pttl(key) > 0) is (state in ENDED)
        assert client.hexists(keys.job(job), "end") is (state in ENDED)
        assert client.hexists(keys.job(job), "request") is (state not in ENDED)
    assert client.llen(keys.calls("echo")) >= len(waiting)
    later = history.moments[history.moments.index(told) :]
    assert {key.name for key in api_keys.listing(client)} in [moment.keys for moment in later]


def survives(history: History, folder: Path, seed: int) -> None:
    """Pull the plug at a moment that the seed chooses, mend what is left as `up` does, and look."""
    dice = random.Random(seed)
    shutil.copytree(history.folder / FOLDER, folder / FOLDER)
    path = folder / FOLDER / history.newest
    told = dice.choice(history.moments)
    pull(path, dice.randint(told.size, min(told.size + PAGE, path.stat().st_size)), dice)
    damaged = path.read_bytes()
    for sentence in mend(folder, server_binary()):
        assert "as by a power cut" in sentence
    kept = b"".join(aside.read_bytes() for aside in path.parent.glob("*.damaged-*"))
    assert path.read_bytes() + kept == damaged
    assert list(mend(folder, server_binary())) == []
    with valkey(folder) as client:
        check(client, history, told)


@pytest.mark.parametrize("seed", range(10))
def test_what_was_on_the_disk_is_there(history: History, tmp_path: Path, seed: int) -> None:
    """Jobs in every state, of every lane, with and without readers; and API keys. The seed says where the plug was pulled."""
    survives(history, tmp_path, seed)


@pytest.mark.full
@pytest.mark.parametrize("hundred", [1, 2])
def test_what_was_on_the_disk_is_there_many_times(history: History, tmp_path: Path, hundred: int) -> None:
    """The same, two hundred times over."""
    for seed in range(hundred * 100, hundred * 100 + 100):
        print("seed", seed)
        survives(history, tmp_path / str(seed), seed)
        shutil.rmtree(tmp_path / str(seed))
