"""Random faults under random load, for as long as one likes: `ops/soak MINUTES [--seed N]`.

Exit code 1 when something that is promised did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil

from tests.faults.clients import REFUSED, Answer, returning, streaming, whole, words
from tests.faults.service import LEASE, PARTS, Service
from tests.stack import LIMIT

CLIENTS = 4
ROUND = 25
"""Faults after which everybody rests, and all that was answered is looked at."""
FAILURES = 3
"""Deaths of the engine's process after which its job is given up, with words to its client."""


@dataclass
class Load:
    """Clients of all kinds, each asking one thing after another."""

    url: str
    seed: str
    longest: int
    """Words of the longest answer."""
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    """Who asked, and what came of it."""
    crashes: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self.crashes:
            raise self.crashes[0]

    def _ask(self, number: int) -> None:
        chance = random.Random(f"{self.seed}/{number}")
        count = 0
        while not self._over.is_set() and not self.crashes:
            count += 1
            text = words(f"{self.seed}/{number}/{count}", chance.randint(1, self.longest))
            leaves_at = chance.randrange(len(text))
            kinds: dict[str, Callable[[], Answer]] = {
                "streaming": lambda: streaming(self.url, text),  # noqa: B023 - called before the next turn
                "whole": lambda: whole(self.url, text),  # noqa: B023
                "leaving": lambda: streaming(self.url, text, leaves_at=leaves_at),  # noqa: B023
                "returning": lambda: returning(self.url, text, leaves_at=leaves_at),  # noqa: B023
                "slow": lambda: streaming(self.url, text, pause=0.02),  # noqa: B023
            }
            kind = chance.choice(list(kinds))
            try:
                answer = kinds[kind]()
            except Exception as error:  # it is raised by whoever waits for the load
                self.crashes.append(error)
                return
            self.answers.append((kind, answer))
            if not answer.job:
                time.sleep(0.2)


class Faults:
    """What can happen to a service."""

    def __init__(self, service: Service, chance: random.Random) -> None:
        self._service = service
        self._chance = chance

    def inject(self) -> str | None:
        """One of them, and its name; None when the part it should have met is not there just now."""
        kind = self._chance.choice(["kill", "kill", "freeze", "network"])
        part = self._chance.choice(PARTS)
        seconds = self._chance.choice([0.3, LEASE / 2, LEASE + self._chance.random()])
        network: dict[str, Callable[[], None]] = {
            "cut": self._service.cable.cut,
            "lost replies": self._service.cable.swallow_replies,
            "slow line": lambda: self._service.cable.delay(0.1),
        }
        try:
            if kind == "kill":
                self._service.kill_part(part)
                return f"kill {part}"
            if kind == "freeze":
                self._freeze(part, seconds)
                return f"freeze {part}"
        except (LookupError, psutil.NoSuchProcess):
            return None
        name = self._chance.choice([*network, "calls nobody made"])
        if name in network:
            network[name]()
            time.sleep(seconds)
            self._service.cable.mend()
        else:
            self._service.call_again(self._chance.randint(1, 30))
        return name

    def _freeze(self, part: str, seconds: float) -> None:
        process = self._service.part(part)
        process.suspend()
        try:
            time.sleep(seconds)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def judged(service: Service, answers: list[tuple[str, Answer]], happened: Counter[str]) -> list[str]:
    """What of these answers, and of their records, is not as promised after what happened meanwhile."""
    found = service.wrong({answer.job: answer.asked for _, answer in answers if answer.job})
    for kind, answer in answers:
        found += answer.wrong()
        if not _allowed(service, kind, answer, happened):
            found.append(f"{answer.job or 'no job'}: {kind} ended with {answer.end} after {len(answer.got)} characters")
    return found


def _allowed(service: Service, kind: str, answer: Answer, happened: Counter[str]) -> bool:
    match answer.end:
        case "stop" | "left":
            return True
        case "engine_lost":
            view = httpx.get(f"{service.url}/v1/jobs/{answer.job}", timeout=LIMIT).json()
            return len(view["interruptions"]) >= FAILURES
        case "broken":
            return happened["kill api"] > 0 and (kind != "returning" or not answer.job)
        case "queue_unavailable":
            redis_was_away = happened["kill valkey"] + happened["freeze valkey"] > 0
            return redis_was_away and (kind != "returning" or not answer.job)
        case code:
            return code in REFUSED and not answer.job and bool(happened)


def sizes(service: Service) -> Counter[str]:
    """What may grow: in each process, and in Redis, whose memory holds the records of ended jobs for a while."""
    found: Counter[str] = Counter()
    for part in PARTS:
        process = service.part(part)
        found[f"{part}: PSS, kB"] = process.memory_full_info().pss // 1024
        found[f"{part}: descriptors"] = process.num_fds()
        found[f"{part}: threads"] = process.num_threads()
    names = [key.decode() for key in service.redis.scan_iter(count=10_000)]
    found["Redis keys but records"] = sum(not name.startswith("rl:{") for name in names)
    found["calls in progress"] = int(service.redis.hlen("rl:unacked"))  # type: ignore[arg-type]
    return found


def tokens(answers: list[tuple[str, Answer]]) -> int:
    """An echo's tokens are bytes."""
    return sum(len(answer.got.encode()) for _, answer in answers)


def soak(minutes: float, seed: int) -> list[str]:
    """Everything that went wrong, in words; prints what happens."""
    began = time.monotonic()
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    jobs = spoken = number = 0
    print(f"seed {seed}", flush=True)
    with Service(job_ttl=600.0) as service:
        while time.monotonic() < began + 60 * minutes:
            number += 1
            name = f"{seed}/{number}"
            chance = random.Random(name)
            injector, happened = Faults(service, chance), Counter[str]()
            with Load(service.url, name, longest=40) as load:
                while happened.total() < ROUND and time.monotonic() < began + 60 * minutes and not load.crashes:
                    time.sleep(chance.choice([0.0, 0.3, 1.5]) * chance.random())
                    if fault := injector.inject():
                        happened[fault] += 1
            new = judged(service, load.answers, happened)
            faults += happened
            jobs += sum(bool(answer.job) for _, answer in load.answers)
            spoken += tokens(load.answers)
            ends += Counter(answer.end for _, answer in load.answers)
            wrong += new
            print(
                f"round {name}: {faults.total()} faults, {jobs} jobs, {spoken} tokens, {len(wrong)} violations",
                *(f"  VIOLATION {line}" for line in new),
                sep="\n",
                flush=True,
            )
        _grow(service, f"{seed}/calm", max(20.0, 6 * minutes), wrong)
    print("faults:", *(f"  {count:5} {fault}" for fault, count in sorted(faults.items())), sep="\n")
    print("ends:", *(f"  {count:5} {end}" for end, count in sorted(ends.items())), sep="\n")
    print(f"{faults.total()} faults, {jobs} jobs, {spoken} tokens, {len(wrong)} violations; seed {seed}")
    return wrong


def _grow(service: Service, name: str, seconds: float, wrong: list[str]) -> None:
    """Print what grows with requests while nothing is broken, so that every process is the same before and after."""
    answers: list[tuple[str, Answer]] = []
    before: Counter[str] = Counter()
    for measured in (False, True):
        with Load(service.url, f"{name}/{measured}", longest=3) as load:
            time.sleep(seconds if measured else seconds / 2)
        answers = load.answers
        new = judged(service, answers, Counter())
        print(*(f"  VIOLATION {line}" for line in new), sep="\n", end="\n" if new else "")
        wrong += new
        if not measured:
            before = sizes(service)
    after = sizes(service)
    print(f"growth per 10,000 requests, from {len(answers)} without a fault:")
    for what in before:
        grown = (after[what] - before[what]) * 10_000 / max(1, len(answers))
        print(f"  {what}: {before[what]} to {after[what]}, {grown:+.0f}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="ops/soak", description="Hurt a small service at random, and look at it.")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    return 1 if soak(arguments.minutes, arguments.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
