"""A small service that is hurt on purpose, and what must be true of it afterwards."""

from __future__ import annotations

import contextlib
import fnmatch
from typing import Any

import httpx
import psutil
import redis

from tasks import keys
from tasks.queue import call
from tests.faults.cable import Cable
from tests.faults.clients import MODEL, words
from tests.faults.clients import whole as ask
from tests.stack import LIMIT, Stack, eventually

LEASE = 3.0
"""Seconds of a lease here: as short as a busy machine keeps without a fault."""

PARTS = ("child", "worker", "board", "api", "valkey")


class Service(Stack):
    """One echo, whose board and worker reach Redis through a cable."""

    def __init__(self, speed: float = 400.0, **settings: str | float) -> None:
        """`speed` is that of the echo, in tokens a second."""
        given: dict[str, str | float] = {"default_model": MODEL, "lease": LEASE, "restart_limit": 1.0} | settings
        super().__init__({MODEL: {"tokens_per_second": speed}}, board=False, **given)
        self._checked: set[str] = set()
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

    def settled(self) -> bool:
        """Whether no job waits or runs, and every call was taken. Those a killed worker had taken Celery keeps for an hour."""
        try:
            busy = [keys.waiting(MODEL), keys.running(MODEL), keys.calls(MODEL)]
            return not self.redis.exists(*busy) and all(self._ended(job) for job in self._records())
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
        for job in set(self._records()) - self._checked:
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

    def _records(self) -> list[str]:
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
