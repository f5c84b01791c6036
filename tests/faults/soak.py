"""Random faults under random load, for as long as one likes: `ops/soak MINUTES [--seed N]`.

Exit code 1 when something that is promised did not hold.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fakes.jumping_clock import JumpingClock
from tests.faults.growth import growth
from tests.faults.hurts import Hurts
from tests.faults.judge import judged
from tests.faults.load import Asked, Load
from tests.faults.service import Service

ROUND = 60
"""Faults after which everybody rests, and all that was answered is looked at."""


def tokens(asked: Sequence[Asked]) -> int:
    """An echo's tokens are bytes."""
    return sum(len(one.answer.got.encode()) for one in asked)


def kept_logs(service: Service) -> Path:
    """A copy of what every part has logged so far, for whoever looks for the cause."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    for name, path in service.logs.items():
        shutil.copy(path, folder / f"{name}.log")
    return folder


def soak(minutes: float, seed: int) -> list[str]:
    """Everything that went wrong, in words; prints what happens. A tenth of the time, and two minutes at least, is for what
    grows; more on a machine that is slow to get warm."""
    began = time.monotonic()
    calm = max(120.0, 6 * minutes)
    over = began + max(30.0, 60 * minutes - calm)
    wrong: list[str] = []
    everything: list[Asked] = []
    print(f"seed {seed}", flush=True)
    service = Service(speed=800.0, job_ttl=600.0)
    clock = JumpingClock(service.folder)
    service.preload(clock.environment)
    with service:
        hurts, number = Hurts(service, clock), 0
        while time.monotonic() < over:
            number += 1
            name, before = f"{seed}/{number}", len(hurts.done)
            chance = random.Random(name)
            with Load(service, name, longest=40) as load:
                while len(hurts.done) < before + ROUND and time.monotonic() < over and not load.crashes:
                    time.sleep(chance.choice([0.0, 0.1, 0.5]) * chance.random())
                    hurts.another(chance)
            new = judged(service, load.asked, hurts)
            if new:
                print(f"logs until then: {kept_logs(service)}")
            everything += load.asked
            wrong += new
            print(
                f"{(time.monotonic() - began) / 60:.1f} min, round {name}: {len(hurts.done)} faults, {len(everything)} requests, "
                f"{tokens(everything)} tokens, {len(wrong)} violations",
                *(f"  VIOLATION {line}" for line in new),
                sep="\n",
                flush=True,
            )
    lines, new = growth(calm, f"{seed}/calm")
    wrong += new
    print(*lines, *(f"  VIOLATION {line}" for line in new), sep="\n")
    lasted: Counter[str] = Counter()
    for hurt in hurts.done:
        lasted[hurt.name] += round(hurt.ended - hurt.began)
    _show("faults", Counter(hurt.name for hurt in hurts.done))
    _show("seconds they lasted", lasted)
    _show("requests", Counter(one.kind for one in everything))
    _show("ends", Counter(one.answer.end for one in everything))
    jobs = sum(bool(one.answer.job) for one in everything)
    print(f"{len(hurts.done)} faults, {jobs} jobs, {tokens(everything)} tokens, {len(wrong)} violations; seed {seed}")
    return wrong


def _show(title: str, counts: Counter[str]) -> None:
    print(f"{title}:", *(f"  {count:5} {name}" for name, count in sorted(counts.items())), sep="\n")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="ops/soak", description="Hurt a small service at random, and look at it.")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    return 1 if soak(arguments.minutes, arguments.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
