"""Clients of all kinds who ask a service one thing after another while it is hurt."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil

from tests.faults.clients import NO_TLS, Answer, returning, streaming, whole, words
from tests.faults.service import Service
from tests.stack import LIMIT, eventually

CLIENTS = 6


@dataclass(frozen=True)
class Asked:
    """One request: which kind of client made it, when it did and had its answer (monotonic seconds), and of which API process."""

    kind: str
    answer: Answer
    began: float
    ended: float
    api: int

    @property
    def time(self) -> tuple[float, float]:
        """From when to when it was asked."""
        return self.began, self.ended


@dataclass
class Load:
    """The clients, from its entry to its exit."""

    service: Service
    seed: str
    longest: int
    """Words of the longest answer."""
    asked: list[Asked] = field(default_factory=list)
    crashes: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self.crashes:
            raise self.crashes[0]

    def _ask_on(self, number: int) -> None:
        chance, count = random.Random(f"{self.seed}/{number}"), 0
        try:
            while not self._over.is_set() and not self.crashes:
                count += 1
                asked = self._ask(chance, words(f"{self.seed}/{number}/{count}", chance.randint(1, self.longest)))
                self.asked.append(asked)
                if not asked.answer.job:
                    time.sleep(0.2)
        except Exception as error:  # it is raised by whoever waits for the load
            self.crashes.append(error)

    def _ask(self, chance: random.Random, text: str) -> Asked:
        url, leaves_at = self.service.url, chance.randrange(len(text))
        kinds: dict[str, Callable[[], Answer]] = {
            "streaming": lambda: streaming(url, text),
            "whole": lambda: whole(url, text),
            "leaving": lambda: streaming(url, text, leaves_at=leaves_at),
            "returning": lambda: returning(url, text, leaves_at=leaves_at),
            "slow reader": lambda: streaming(url, text, pause=0.02),
        }
        kind = chance.choice(list(kinds))
        api = eventually(self._living_api, what="an API that answers")
        began = time.monotonic()
        return Asked(kind, kinds[kind](), began, time.monotonic(), api)

    def _living_api(self) -> int | None:
        """The process of the API, once it answers."""
        with contextlib.suppress(LookupError, psutil.NoSuchProcess, httpx.TransportError):
            process = self.service.part("api")
            httpx.get(f"{self.service.url}/healthz", timeout=LIMIT, verify=NO_TLS).raise_for_status()
            if process.is_running():
                return process.pid
        return None
