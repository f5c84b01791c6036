"""What a power cut leaves of Valkey's files: damage is cut off and kept, and every job acknowledged before it is there."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from ops.up.append_only import mend, whole_bytes
from ops.up.store import FOLDER, MANIFEST, server_binary
from tasks import keys
from tasks.claims import claim_next
from tasks.connection import connect, connect_async
from tasks.events import ChoiceEnded, Finished, FinishReason, Numbered, TextDelta, Timings, Usage, fold
from tasks.jobs import Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore
from tasks.stream import EventWriter, RecordedPiece, numbered
from tests.stack import eventually

BASE = "appendonly.aof.1.base.rdb"
INCREMENT = "appendonly.aof.1.incr.aof"


@dataclass
class Told:
    """What a client had been told when Valkey's file was `size` bytes long."""

    size: int
    accepted: tuple[str, ...]
    answered: tuple[str, ...]


@dataclass
class Run:
    """A service's store after some work, and what was acknowledged when."""

    folder: Path
    told: list[Told] = field(default_factory=list)

    @property
    def increment(self) -> bytes:
        return (self.folder / FOLDER / INCREMENT).read_bytes()


@contextmanager
def valkey(folder: Path) -> Iterator[redis.Redis]:
    """A server on these files, as `up` starts it. Fails when it refuses them."""
    options = ["--port", "0", "--dir", str(folder), "--appendonly", "yes", "--aof-load-truncated", "no", "--save", ""]
    command = [str(server_binary()), *options, "--unixsocket", str(folder / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        client = connect(f"unix://{folder}/s")

        def answers() -> bool:
            assert server.poll() is None, server.stdout and server.stdout.read()
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        try:
            eventually(answers, what="Valkey")
            yield client
        finally:
            client.close()
            server.kill()


async def work(client: redis.Redis, run: Run) -> None:
    """Accept five jobs, and answer three of them in two pieces each."""
    accepted: list[str] = []
    answered: list[str] = []
    store = JobStore(connect_async(f"unix://{run.folder}/s"), queue_limit=20, job_ttl=600, deadline=600)

    def acknowledged() -> None:
        eventually(lambda: client.info("persistence")["aof_buffer_length"] == 0, what="a written file")
        run.told.append(Told((run.folder / FOLDER / INCREMENT).stat().st_size, tuple(accepted), tuple(answered)))

    for _ in range(5):
        job = new_job_id()
        await store.accept(job, "echo", ChatRequest((Message("user", "hello"),)), lane=Lane.INTERACTIVE, owner="")
        accepted.append(job)
        acknowledged()
        if len(accepted) % 2:
            held = claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60)
            assert held is not None
            with EventWriter(client, held.job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
                writer.write((TextDelta("hel"),), RecordedPiece(0, 1, b"hel"))
                writer.write((TextDelta("lo"), ChoiceEnded(0, FinishReason.STOP)), RecordedPiece(0, 2, b"lo"))
                writer.end(Finished(FinishReason.STOP, Usage(1, 2), Timings()))
            answered.append(held.job)
            acknowledged()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run"))
    with valkey(run.folder) as client:
        asyncio.run(work(client, run))
    return run


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """A copy of the store, to be damaged."""
    shutil.copytree(run.folder / FOLDER, tmp_path / FOLDER)
    return tmp_path


def mended(folder: Path) -> list[str]:
    """What is said of the mending. A second one finds nothing to do."""
    said = list(mend(folder, server_binary()))
    assert list(mend(folder, server_binary())) == []
    return said


def recorded(client: redis.Redis, job: str) -> list[Numbered]:
    """All events of a job."""
    entries: Any = client.xrange(keys.events(job))
    return [item for entry, fields in entries for item in numbered(entry, fields[b"e"])]


def check(client: redis.Redis, told: Told) -> None:
    """Whatever was acknowledged is there and whole, and nothing is there by half."""
    records = [key.decode() for key in client.keys("rl:{*}")]
    assert {keys.job(job) for job in told.accepted} <= set(records)
    waiting = {member.decode() for member in client.zrange(keys.waiting("echo"), 0, -1)}
    running = {member.decode() for member in client.zrange(keys.running("echo"), 0, -1)}
    for record in records:
        job = record.removeprefix("rl:{").removesuffix("}")
        state = client.hget(record, "state")
        assert (state == b"queued", state == b"running") == (job in waiting, job in running)
        events = recorded(client, job)
        assert [event.seq for event in events] == list(range(1, len(events) + 1)) and events
        assert (client.pttl(record) > 0) is (state == b"finished")
    for job in told.answered:
        assert client.hget(keys.job(job), "state") == b"finished"
        assert fold(item.event for item in recorded(client, job)).choices[0].text == "hello"
    assert client.llen(keys.calls("echo")) >= len(waiting)


def cut(path: Path, at: int) -> None:
    os.truncate(path, at)


def zero(path: Path, at: int) -> None:
    size = path.stat().st_size
    os.truncate(path, at)
    os.truncate(path, size)


def zero_beyond(path: Path, at: int) -> None:
    """As a file system leaves it that had made the file longer already."""
    os.truncate(path, at)
    os.truncate(path, at + 5000)


@pytest.mark.parametrize("damage", [cut, zero, zero_beyond])
@pytest.mark.parametrize("share", [0.0, 0.35, 0.97, 1.0])
def test_what_was_acknowledged_before_the_damage_is_there(
    run: Run, folder: Path, damage: Callable[[Path, int], None], share: float
) -> None:
    """Wherever the file ends or becomes zeros, Valkey starts and no job is lost, or there by half."""
    path = folder / FOLDER / INCREMENT
    at = int(len(run.increment) * share)
    damage(path, at)
    damaged = path.read_bytes()
    said = mended(folder)
    kept = list(path.parent.glob("*.damaged-*"))
    if said:
        assert f"{len(kept[0].read_bytes())} of its {len(damaged)} bytes" in said[0] and kept[0].name in said[0]
    assert path.read_bytes() + b"".join(aside.read_bytes() for aside in kept) == damaged
    with valkey(folder) as client:
        check(
            client, max((told for told in run.told if told.size <= at), key=lambda t: t.size, default=Told(0, (), ()))
        )


def test_a_cut_anywhere_is_brought_back_to_whole_steps(run: Run, tmp_path: Path) -> None:
    """At every byte of the last jobs: what stays is a beginning of the file, never longer than the cut, and ends where one of
    our steps does, of which each is whole or not there."""
    path = tmp_path / INCREMENT
    path.write_bytes(run.increment)
    ends = {told.size for told in run.told}
    assert whole_bytes(path) == len(run.increment) == max(ends)
    seen = set()
    for at in range(len(run.increment), run.told[-3].size, -1):
        os.truncate(path, at)
        seen.add(whole := whole_bytes(path))
        assert max(end for end in ends if end <= at) <= whole <= at
        assert run.increment[:whole].count(b"\r\nMULTI\r\n") == run.increment[:whole].count(b"\r\nEXEC\r\n")
    assert seen >= {end for end in ends if end > run.told[-3].size}


@pytest.mark.parametrize(
    "rest",
    [b"*2\r\n$3\r\nDEL\r\n$2\r\na\0\0\0", b"*1\r\n$9999\r\nDEL\r\n", b"*0\r\n", b"\0", b"*1\r\n\0\0\0", b"#TS:17"],
)
def test_what_is_no_command_is_not_whole(tmp_path: Path, rest: bytes) -> None:
    """Zeros for the end of a word, a length beyond the file, no words, no length, half a remark."""
    whole = b"#TS:1700000000\r\n*1\r\n$4\r\nPING\r\n"
    path = tmp_path / INCREMENT
    path.write_bytes(whole + rest)
    assert whole_bytes(path) == len(whole)


@pytest.mark.parametrize("name", [MANIFEST, BASE])
@pytest.mark.parametrize("damage", [cut, zero, zero_beyond])
@pytest.mark.parametrize("at", [0, 40])
def test_the_list_and_the_first_file_are_not_needed(
    run: Run, folder: Path, name: str, damage: Callable[[Path, int], None], at: int
) -> None:
    """The one is written again, the other has nothing in it; no job is lost."""
    damage(folder / FOLDER / name, at)
    said = mended(folder)
    assert len(said) == 1 and "nothing is lost" in said[0]
    with valkey(folder) as client:
        check(client, run.told[-1])


def rewritten(folder: Path) -> None:
    """Have Valkey write all it knows into a new base, and one more job behind it."""
    with valkey(folder) as client:
        client.bgrewriteaof()
        eventually(lambda: (folder / FOLDER / "appendonly.aof.2.base.rdb").exists(), what="a new base")
        eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the end of the rewriting")
        client.set("behind", 1)
        eventually(lambda: client.info("persistence")["aof_buffer_length"] == 0, what="a written file")


def test_the_list_of_rewritten_files_is_written_again(run: Run, folder: Path) -> None:
    """Also when what was there before has not been deleted yet."""
    rewritten(folder)
    for name in (BASE, INCREMENT):
        shutil.copy(run.folder / FOLDER / name, folder / FOLDER / name)
    (folder / FOLDER / MANIFEST).unlink()
    assert len(mended(folder)) == 1
    with valkey(folder) as client:
        check(client, run.told[-1])
        assert client.get("behind") == b"1"
        assert client.get(keys.ORDER) == b"5"  # no step was done twice


def test_without_the_main_file_it_begins_anew(folder: Path) -> None:
    """That is said, and everything is kept."""
    rewritten(folder)
    base = folder / FOLDER / "appendonly.aof.2.base.rdb"
    zero(base, base.stat().st_size // 2)
    said = mended(folder)
    [kept] = folder.glob(f"{FOLDER}.damaged-*")
    assert len(said) == 1 and "all jobs and API keys are lost" in said[0] and str(kept) in said[0]
    assert (kept / base.name).exists()
    with valkey(folder) as client:
        assert client.dbsize() == 0


def test_what_came_after_a_hole_goes_with_it(folder: Path) -> None:
    """A later file of commands is not applied to a state it was not written for."""
    files = folder / FOLDER
    shutil.copy(files / INCREMENT, files / "appendonly.aof.2.incr.aof")
    with (files / MANIFEST).open("a") as manifest:
        manifest.write("file appendonly.aof.2.incr.aof seq 2 type i\n")
    zero(files / INCREMENT, 300)
    said = mended(folder)
    assert len(said) == 1 and "appendonly.aof.2.incr.aof came after it and is lost with it" in said[0]
    with valkey(folder) as client:
        assert client.dbsize() == 0


def test_whole_files_are_left_alone(folder: Path) -> None:
    """Nothing is said, nothing is written; so it is where there is nothing at all."""
    before = {path.name: path.stat().st_mtime_ns for path in (folder / FOLDER).iterdir()}
    assert mended(folder) == mended(folder / "nothing") == []
    assert {path.name: path.stat().st_mtime_ns for path in (folder / FOLDER).iterdir()} == before
