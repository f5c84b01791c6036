"""What grows with requests while nothing is broken, so that every process is the same from first to last."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx

from tasks.connection import MOST_CONNECTIONS
from tests.faults.clients import NO_TLS
from tests.faults.load import Load
from tests.faults.service import PARTS, Service
from tests.stack import LIMIT, eventually

TTL = 5.0
"""Seconds for which the record of an ended job is kept here: their number soon stays the same."""
SAMPLES = 8
WARM = 10_000
"""Requests before anything is measured: what parent and child share since the fork becomes their own by and by until then."""
LONGEST_WARMING = 1800.0
"""Seconds in which even a busy machine answers as many."""


def sizes(service: Service) -> Counter[str]:
    """What may grow: in each process, and in Redis."""
    found: Counter[str] = Counter()
    for part in PARTS:
        process = service.part(part)
        found[f"{part}: PSS, kB"] = process.memory_full_info().pss // 1024
        found[f"{part}: descriptors"] = process.num_fds()
        found[f"{part}: threads"] = process.num_threads()
    found["Redis: used memory, kB"] = int(service.redis.info("memory")["used_memory"]) // 1024
    found["Redis: keys"] = int(service.redis.dbsize())  # type: ignore[arg-type]
    found["Redis: calls in progress"] = int(service.redis.hlen("rl:unacked"))  # type: ignore[arg-type]
    return found


def growth(seconds: float, seed: str) -> tuple[list[str], list[str]]:
    """Each size and its slope per 10,000 requests, with its standard error, in lines; and what went wrong with answers.

    Measured on a service of its own, for so many seconds, each time all is quiet and no record is left; it takes longer where
    half of that is too short to get warm.
    """
    wrong: list[str] = []
    requests, samples = [], []
    with Service(speed=0, job_ttl=TTL) as service:
        for count, seen in _stretches(service, seconds, seed, wrong):
            requests.append(count)
            samples.append(seen)
    lines = [f"growth per 10,000 requests, from {requests[-1] - requests[0]} without a fault:"]
    for what in samples[0]:
        values = [sample[what] for sample in samples]
        slope, error = _slope(requests, values)
        lines.append(f"  {what}: {values[0]} to {values[-1]}, {10_000 * slope:+.1f} ± {10_000 * error:.1f}")
    return lines, wrong


def _stretches(service: Service, seconds: float, seed: str, wrong: list[str]) -> Iterator[tuple[int, Counter[str]]]:
    """How many requests were made and what there was then, after each stretch of load but the first, which takes half of the
    time and `WARM` requests at least."""
    count = 0
    for number in range(SAMPLES + 1):
        with Load(service, f"{seed}/{number}", longest=3) as load:
            time.sleep(seconds / 2 / SAMPLES if number else seconds / 2)
            if not number:
                eventually(partial(_warm, load), limit=LONGEST_WARMING, what=f"{WARM} requests")
                _open_connections(service)
        eventually(service.settled, what="an end of all jobs")
        for one in load.asked:
            wrong += one.answer.wrong()
            if one.answer.end != "stop" and (one.kind, one.answer.end) != ("leaving", "left"):
                wrong.append(
                    f"{one.answer.job or 'no job'}: {one.kind} ended with {one.answer.end} though all was well"
                )
        count += len(load.asked)
        eventually(lambda: not service.jobs_on_record(), what="the expiry of all records")
        yield count, sizes(service)


def _open_connections(service: Service) -> None:
    """All that the API may have to Redis. It opens one more whenever so many requests meet as never before, which would look
    like a leak of descriptors in both for as long."""
    with ThreadPoolExecutor(4 * MOST_CONNECTIONS) as pool:
        list(pool.map(lambda _: httpx.get(f"{service.url}/v1/queue", timeout=LIMIT, verify=NO_TLS), range(500)))


def _warm(load: Load) -> bool:
    return len(load.asked) >= WARM or bool(load.crashes)


def _slope(x: list[int], y: list[int]) -> tuple[float, float]:
    """Of the line nearest to the points, and its standard error."""
    line = statistics.linear_regression(x, y)
    rest = sum((b - line.intercept - line.slope * a) ** 2 for a, b in zip(x, y, strict=True))
    middle = statistics.fmean(x)
    return line.slope, (rest / (len(x) - 2) / sum((a - middle) ** 2 for a in x)) ** 0.5
