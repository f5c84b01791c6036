"""What can happen to a service, at random and one at a time."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

from tests.fakes.jumping_clock import AGES, HOUR, JumpingClock
from tests.faults.service import LEASE, PARTS, Service


@dataclass(frozen=True)
class Hurt:
    """One fault, and when it began and was over, in monotonic seconds."""

    name: str
    began: float
    ended: float

    def met(self, began: float, ended: float, after: float = 0.0) -> bool:
        """Whether it was there in that time, or had been over for less than `after` seconds when that began."""
        return self.began <= ended and began <= self.ended + after


class Hurts:
    """Hurts a service, and keeps what was done to it."""

    def __init__(self, service: Service, clock: JumpingClock) -> None:
        self.done: list[Hurt] = []
        self.lost: list[str] = []
        """What was acknowledged a second before the power went, and is not there any more."""
        self._service = service
        self._clock = clock

    def another(self, chance: random.Random) -> None:
        """One of all kinds; none when the part it should have met is not there just now."""
        kinds: dict[str, tuple[int, Callable[[random.Random], str]]] = {
            "kill": (8, self._kill),
            "freeze": (8, self._freeze),
            "network": (5, self._network),
            "calls": (5, self._calls),
            "clock": (3, self._jump),
            "power": (2, self._power),
            "disk": (1, self._disk),
        }
        weights = [weight for weight, _ in kinds.values()]
        [(_, hurt)] = chance.choices(list(kinds.values()), weights)
        began = time.monotonic()
        with contextlib.suppress(LookupError, psutil.NoSuchProcess):
            self.done.append(Hurt(hurt(chance), began, time.monotonic()))

    def met(self, names: Iterable[str], began: float, ended: float, after: float = 0.0) -> bool:
        """Whether one of those with these names was there in that time; see `Hurt.met`."""
        return any(hurt.name in names and hurt.met(began, ended, after) for hurt in self.done)

    def _kill(self, chance: random.Random) -> str:
        # Each death of the API takes all connections along, so that little is left to be seen of the others.
        [part] = chance.choices(PARTS, [2 if part == "api" else 5 for part in PARTS])
        self._service.kill_part(part)
        return f"kill {part}"

    def _freeze(self, chance: random.Random) -> str:
        part = chance.choice(PARTS)
        process = self._service.part(part)
        process.suspend()
        try:
            time.sleep(_seconds(chance))
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        return f"freeze {part}"

    def _network(self, chance: random.Random) -> str:
        cable = self._service.cable
        kinds: dict[str, Callable[[], None]] = {
            "cut": cable.cut,
            "lost replies": cable.swallow_replies,
            "slow line": lambda: cable.delay(0.1),
        }
        name = chance.choice(list(kinds))
        kinds[name]()
        time.sleep(_seconds(chance))
        cable.mend()
        return f"network: {name}"

    def _calls(self, chance: random.Random) -> str:
        kinds: dict[str, Callable[[], None]] = {
            "nobody made them": lambda: self._service.call_again(chance.randint(1, 30)),
            "out of order": lambda: self._service.reorder_calls(chance),
            "lost": self._service.lose_calls,
        }
        name = chance.choice(list(kinds))
        kinds[name]()
        return f"calls: {name}"

    def _jump(self, chance: random.Random) -> str:
        seconds = chance.choice([HOUR, AGES])
        if self._clock.seconds > 0 or (self._clock.seconds == 0 and chance.random() < 0.5):
            seconds = -seconds
        self._clock.jump(seconds)
        return f"clock {'forwards' if seconds > 0 else 'backwards'}"

    def _power(self, chance: random.Random) -> str:
        kind, lost = self._service.lose_power(chance)
        self.lost += lost
        return f"power: {kind}"

    def _disk(self, chance: random.Random) -> str:
        self._service.fill_disk(_seconds(chance))
        return "full disk"


def _seconds(chance: random.Random) -> float:
    """Shorter and longer than a lease."""
    return chance.choice([0.3, LEASE / 2, LEASE + chance.random()])
