"""The figures for Prometheus, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api import metrics
from api.metrics import METRICS, PREFIX
from tasks.api_keys import Scope
from tasks.batch import BatchState, Progress
from tasks.jobs import JobState, Lane
from tasks.presence import Machine, Presence
from tasks.queue_book import Held, QueueView
from tests.api.scripted import TINY
from tests.api.scripted_services import ScriptedBatches
from tests.api.site import Site

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(place: Site, only: Collection[str] | None = None, **headers: str) -> Samples:
    """All that is told; `only` are the metrics that may be among it, by default every one."""
    reply = place.http.get("/metrics", headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(reply.text))
    told = [(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples]
    assert len(told) == len(set(told)), "Prometheus takes no two samples of the same labels"
    assert {family.name for family in families} == {
        PREFIX + name for name in only or [metric.name for metric in METRICS]
    }
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def test_every_metric_is_shown(place: Site) -> None:
    """With what it means, also while there is nothing to count."""
    shown = place.http.get("/metrics").text
    assert [metric.name for metric in METRICS if f"# HELP {PREFIX}{metric.name}" not in shown] == []


def test_jobs_are_told_by_model_and_lane(place: Site) -> None:
    """Those of models that are gone are one; the sum of a histogram is of all that was measured."""
    place.world.queues.counted = {
        "jobs tiny interactive stop": 3,
        "jobs gone batch deadline": 1,
        "jobs lost batch deadline": 2,
        "first tiny interactive 250": 2,
        "first tiny interactive inf": 1,
        "first_us tiny interactive": 401_500_000,
        "cached tiny interactive": 44,
        "read tiny interactive moved": 7,
        "loads tiny": 2,
        "loads gone": 1,
        "unloads gone room": 1,
        "unloads lost room": 3,
    }
    shown = scrape(place)
    assert value(shown, "jobs_total", model="tiny", lane="interactive", outcome="stop") == 3
    assert value(shown, "jobs_total", model="other", lane="batch", outcome="deadline") == 3
    assert value(shown, "cached_tokens_total", model="tiny", lane="interactive") == 44
    assert value(shown, "read_tokens_total", model="tiny", lane="interactive", reason="moved") == 7
    assert [value(shown, "model_loads_total", model=model) for model in ("tiny", "other")] == [2, 1]
    assert value(shown, "model_unloads_total", model="other", reason="room") == 4
    of = {"model": "tiny", "lane": "interactive"}
    buckets = [value(shown, "first_token_seconds_bucket", le=le, **of) for le in ("0.1", "0.25", "300.0", "+Inf")]
    assert buckets == [0, 2, 2, 3]
    assert value(shown, "first_token_seconds_count", **of) == 3
    assert value(shown, "first_token_seconds_sum", **of) == 401.5


def test_what_may_happen_next_is_told_before_it_has(place: Site) -> None:
    """Prometheus takes a count that begins with 1 for one that did not grow, and the first failure would be none."""
    place.world.queues.counted = {"jobs tiny interactive engine_lost": 1}
    place.world.roster.alive = [Presence(name="tiny@b1", board="b1", model="tiny", state="idle")]
    shown = scrape(place)
    for lane, lost in (("interactive", 1), ("background", 0), ("batch", 0)):
        assert value(shown, "jobs_total", model="tiny", lane=lane, outcome="engine_lost") == lost
        assert value(shown, "jobs_total", model="tiny", lane=lane, outcome="stop") == 0
        assert value(shown, "job_crashes_total", model="tiny", lane=lane) == 0
    assert value(shown, "model_loads_total", model="tiny") == 0
    assert value(shown, "model_unloads_total", model="tiny", reason="room") == 0
    place.world.roster.alive = []
    assert value(scrape(place), "job_crashes_total", model="tiny", lane="batch") is None


def test_batches_are_told_together(place: Site) -> None:
    """A label for each would be one for everybody who ever sent one."""
    assert isinstance(place.world.batches, ScriptedBatches)
    place.world.batches.stands = [
        Progress(state=BatchState.IN_PROGRESS, total=10, completed=4, failed=1),
        Progress(state=BatchState.IN_PROGRESS, total=5),
        Progress(state=BatchState.VALIDATING),
    ]
    shown = scrape(place)
    states = ("validating", "in_progress", "finalizing", "cancelling")
    assert [value(shown, "batches", state=state) for state in states] == [1, 2, 0, 0]
    assert [value(shown, "batch_requests", state=state) for state in ("completed", "failed", "left")] == [4, 1, 10]


def test_queues_and_boards_are_told_as_they_stand(place: Site) -> None:
    """What a board's kernel does not tell is absent, rather than 0."""
    place.world.queues.jobs = [Held("a" * 22, JobState.QUEUED, "key:1", Lane.BATCH)]
    place.world.roster.known = [msgspec.structs.replace(TINY, boards=("b1",))]
    machine = Machine(
        npu_load=(50, 0, 7),
        temperature=85.5,
        limit=85.0,
        hot=True,
        npu_hertz=300_000_000,
        npu_highest=1_000_000_000,
        memory=8_000,
        memory_available=3_000,
    )
    place.world.roster.alive = [
        Presence(name="tiny@b1", board="b1", model="tiny", state="busy", decode_tps=9.5, parked=3),
        Presence(name="tiny#2@b1", board="b1", model="tiny", state="loaded", decode_tps=8.5, parked=4),
        Presence(name="tiny#3@b1", board="b1", model="tiny", state="idle"),
        Presence(name="board:b1", board="b1", version="0.1.0", machine=machine),
        Presence(name="board:b2", board="b2", version="0.1.0", machine=Machine(), drained=True),
    ]
    shown = scrape(place)
    assert value(shown, "queue_waiting", model="tiny", lane="batch") == 1
    assert value(shown, "queue_waiting", model="tiny", lane="interactive") == 0
    assert value(shown, "queue_estimated_wait_seconds", model="tiny") == 8.0
    assert value(shown, "worker_loaded", board="b1", model="tiny") == 2
    assert value(shown, "worker_parked_bytes", board="b1", model="tiny") == 7
    assert value(shown, "worker_decode_tokens_per_second", board="b1", model="tiny") == 9.0
    assert value(shown, "worker_prefill_tokens_per_second", board="b1", model="tiny") is None
    assert value(shown, "board_npu_load_ratio", board="b1", core="2") == 0.07
    assert value(shown, "board_temperature_celsius", board="b1") == 85.5
    assert value(shown, "board_temperature_limit_celsius", board="b1") == 85.0
    assert value(shown, "board_hot", board="b1") == 1
    assert value(shown, "board_hot", board="b2") is None
    assert value(shown, "board_temperature_celsius", board="b2") is None
    assert value(shown, "board_npu_clock_hertz", board="b1") == 300_000_000
    assert value(shown, "board_npu_highest_clock_hertz", board="b1") == 1_000_000_000
    assert value(shown, "board_npu_clock_hertz", board="b2") is None
    assert [value(shown, "board_serving", board=board, version="0.1.0") for board in ("b1", "b2")] == [1, 0]


@pytest.mark.parametrize(
    ("path", "route"), [("/v1/queue/tiny", "/v1/queue/{model:path}"), ("/healthz", "/healthz"), ("/no/such", "other")]
)
def test_requests_are_counted_by_route_and_status(place: Site, path: str, route: str) -> None:
    """A path that somebody made up is none of the labels."""
    status = str(place.http.get(path).status_code)
    before = value(scrape(place), "http_requests_total", route=route, status=status) or 0
    place.http.get(path)
    assert value(scrape(place), "http_requests_total", route=route, status=status) == before + 1


def test_who_may_use_the_api_may_read_them(place: Site) -> None:
    """And nobody else, once there are keys."""
    place.world.api_keys.make("user-key", Scope.INFERENCE)
    assert place.http.get("/metrics").status_code == 401
    assert scrape(place, authorization="Bearer user-key")


@pytest.mark.parametrize("frozen", [False, True], ids=["away", "frozen"])
def test_a_redis_that_does_not_answer_is_told(place: Site, monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    """In Prometheus' own time, with what needs no Redis; queues are told neither as empty nor as they once were."""

    async def silent(models: Sequence[str]) -> list[QueueView]:
        await asyncio.Event().wait()
        raise AssertionError

    place.world.roster.alive = [Presence(name="board:b1", board="b1", version="0.1.0")]
    place.http.get("/healthz")
    before = scrape(place)
    assert value(before, "redis_up") == 1
    with monkeypatch.context() as patch:
        if frozen:
            patch.setattr(metrics, "PATIENCE", 0.05)
            patch.setattr(place.world.queues, "view", silent)
        else:
            place.world.roster.alive = []
            place.world.roster.away = True
        shown = scrape(place, only=("http_requests", "redis_up"))
    assert value(shown, "redis_up") == 0
    of = {"route": "/healthz", "status": "200"}
    assert value(shown, "http_requests_total", **of) == value(before, "http_requests_total", **of)
    place.world.roster.away = False
    assert value(scrape(place), "redis_up") == 1
