"""What one item of a batch costs, in batches of a thousand, ten thousand and a hundred thousand: as much in each."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest

from ops.bench.processes import CpuMeter, block_writes, pss
from ops.bench.service import QUICK, Service
from tasks.connection import connect
from tests.e2e.test_batch_load import input_of
from tests.stack import eventually

COUNTS = (1_000, 10_000, 100_000)
LIMIT = 7200.0
"""Seconds the largest may take on a machine that is busy with other things."""

pytestmark = [pytest.mark.full, pytest.mark.timeout(2 * LIMIT)]


@dataclass(frozen=True, slots=True)
class Cost:
    """One batch: milliseconds of CPU for an item by who spent them, kilobytes to the disk for an item, and the most there was at
    once of the API's memory and of Redis' in MB, and of keys."""

    items: int
    seconds: float
    api: float
    worker: float
    store: float
    written_api: float
    written_store: float
    memory: float
    redis: float
    keys: int


@pytest.fixture
def service() -> Iterator[Service]:
    """The whole of it, as `up` starts it."""
    with Service() as running:
        running.load(QUICK)
        yield running


def test_an_item_costs_the_same_in_batches_of_every_size(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """Time, writes and memory; and what a batch took of Redis does not grow with it."""
    run(service, COUNTS[0])  # so that everything was done once
    costs = [run(service, count) for count in COUNTS]
    with capsys.disabled():
        print("", *costs, sep="\n")
    small, large = costs[0], costs[-1]
    for name in ("api", "worker", "store", "written_api", "written_store"):
        assert getattr(large, name) < 1.5 * getattr(small, name), name
    assert large.memory < small.memory + 30
    assert large.redis < small.redis + 3
    assert large.keys < 4 * small.keys  # there are more at once where more is done in a second


def run(service: Service, count: int) -> Cost:
    """A batch of so many, to its end."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=20)
    redis = connect(service.redis_url)
    parts = service.members()
    api, store = ([part for part in parts if part.role == role] for role in ("api", "store"))
    data = input_of(count, model=QUICK)
    file = client.files.create(file=("input.jsonl", io.BytesIO(data)), purpose="batch")
    del data
    written = {"api": block_writes(api), "store": block_writes(store)}
    meter = CpuMeter(parts)
    most = {"memory": 0.0, "redis": 0.0, "keys": 0.0}
    begun = time.monotonic()
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    def over() -> bool:
        seen = {
            "memory": pss(parts, "api"),
            "redis": redis.info("memory")["used_memory"] / 1e6,
            "keys": float(redis.dbsize()),
        }
        most.update({name: max(most[name], value) for name, value in seen.items()})
        time.sleep(0.5)  # to ask costs the API too, and is counted
        return client.batches.retrieve(batch.id).status in ("completed", "failed", "expired", "cancelled")

    eventually(over, limit=LIMIT, what="the batch's end")
    used = meter.read()
    ended = client.batches.retrieve(batch.id)
    assert ended.request_counts is not None
    assert (ended.status, ended.request_counts.completed) == ("completed", count)
    return Cost(
        items=count,
        seconds=round(time.monotonic() - begun, 1),
        api=_each(1e3 * used["api"], count),
        worker=_each(1e3 * (used["parent"] + used["child"] + used["renderer"]), count),
        store=_each(1e3 * used["store"], count),
        written_api=_each((block_writes(api) - written["api"]) / 1e3, count),
        written_store=_each((block_writes(store) - written["store"]) / 1e3, count),
        memory=round(most["memory"], 1),
        redis=round(most["redis"], 2),
        keys=int(most["keys"]),
    )


def _each(amount: float, count: int) -> float:
    return round(amount / count, 3)
