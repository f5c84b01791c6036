"""Figures for Prometheus: what this process was asked, what became of all jobs, how queues and boards stand."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from statistics import mean
from typing import Final, NamedTuple

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from api.needs import Services, services_of
from tasks.batch import OVER, BatchState, Progress
from tasks.counts import BOUNDS, Counts
from tasks.errors import QueueUnavailable
from tasks.events import FailureCode, FinishReason
from tasks.jobs import Lane
from tasks.model_events import Unload
from tasks.presence import Presence
from tasks.queue_book import QueueView
from tasks.residence import LOADED
from tasks.roster import Snapshot
from tasks.standing import Gate

router = APIRouter(tags=["Service"])

PATIENCE: Final = 3.0
"""Seconds Redis may take for all that it is asked: Prometheus by itself waits ten for the whole answer."""

PREFIX = "rockchipllama_"
OTHER = "other"
"""Stands for models that no board has any more, and for paths that nothing answers: so labels have few values."""


class Metric(NamedTuple):
    """One metric as it is declared; the name goes without the prefix, and for counters without `_total`."""

    name: str
    kind: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
    labels: tuple[str, ...]
    meaning: str


_PER_MODEL = ("model", "lane")

REQUESTS = Metric(
    "http_requests",
    CounterMetricFamily,
    ("route", "status"),
    "Requests that were answered, or whose client left (499). Of this API process alone.",
)
REDIS = Metric(
    "redis_up",
    GaugeMetricFamily,
    (),
    "1 while Redis answers this API process, else 0: then of all that is told here there are only its own requests.",
)
ENDED = Metric(
    "jobs",
    CounterMetricFamily,
    (*_PER_MODEL, "outcome"),
    "Jobs that ended, by the reason they finished for (`stop`, `length`, `tool_calls`, `cancelled`) or the code they "
    "failed with.",
)
TOTALS = {
    "prompt": Metric("prompt_tokens", CounterMetricFamily, _PER_MODEL, "Tokens of the prompts of finished jobs."),
    "cached": Metric("cached_tokens", CounterMetricFamily, _PER_MODEL, "Those of them that were not read again."),
    "parked": Metric(
        "parked_tokens",
        CounterMetricFamily,
        _PER_MODEL,
        "Those of the cached that others had displaced, and that were loaded from memory.",
    ),
    "completion": Metric("completion_tokens", CounterMetricFamily, _PER_MODEL, "Tokens of their answers."),
    "again": Metric(
        "reread_tokens",
        CounterMetricFamily,
        _PER_MODEL,
        "Tokens of prompts that were read once more because a worker was paused, stopped or lost.",
    ),
    "crashes": Metric(
        "job_crashes",
        CounterMetricFamily,
        _PER_MODEL,
        "Workers that were lost at a job that has ended since, well or not.",
    ),
    "pauses": Metric("job_pauses", CounterMetricFamily, _PER_MODEL, "Pauses of such jobs in favour of a chat."),
}
READ = Metric(
    "read_tokens",
    CounterMetricFamily,
    (*_PER_MODEL, "reason"),
    "Tokens of their prompts that were read, by why they were not in the cache: `new` (the first of a conversation), "
    "`continued` (what is new in one that was there), `changed` (less than half of the prompt was there, though its "
    "conversation was the last), `moved` (another board has it), `evicted` (others were served since).",
)
TIMES = {
    "wait": Metric("queue_wait_seconds", HistogramMetricFamily, _PER_MODEL, "From acceptance to a worker."),
    "first": Metric(
        "first_token_seconds",
        HistogramMetricFamily,
        _PER_MODEL,
        "From acceptance to the first token: waiting, loading and reading the prompt.",
    ),
    "token": Metric(
        "token_seconds", HistogramMetricFamily, _PER_MODEL, "For a token of an answer, the mean of each job."
    ),
}
WAITING = Metric("queue_waiting", GaugeMetricFamily, _PER_MODEL, "Jobs that wait.")
RUNNING = Metric("queue_running", GaugeMetricFamily, ("model",), "Jobs that run.")
ESTIMATE = Metric(
    "queue_estimated_wait_seconds",
    GaugeMetricFamily,
    ("model",),
    "How long one more job is likely to wait; absent while nobody can tell.",
)
OPEN = Metric("queue_open", GaugeMetricFamily, ("model",), "1, or 0 while it is paused or draining.")
BATCHES = Metric("batches", GaugeMetricFamily, ("state",), "Batches that have not ended.")
ITEMS = Metric(
    "batch_requests",
    GaugeMetricFamily,
    ("state",),
    "Requests of such batches: `completed`, `failed`, or `left`, as far as they are counted.",
)
LOADS = Metric("model_loads", CounterMetricFamily, ("model",), "Loads by workers of all boards.")
UNLOADS = Metric(
    "model_unloads",
    CounterMetricFamily,
    ("model", "reason"),
    "Unloads by boards: `asked` for, `idle` for longer than it is kept, for `room` for another model, or `gone`, as its files "
    "are or its board, which is drained.",
)
WORKER = Metric(
    "worker_loaded",
    GaugeMetricFamily,
    ("board", "model"),
    "Workers that have their model loaded; 0 of those that have not.",
)
PREFILL = Metric(
    "worker_prefill_tokens_per_second", GaugeMetricFamily, ("board", "model"), "How fast a worker has lately read."
)
DECODE = Metric(
    "worker_decode_tokens_per_second", GaugeMetricFamily, ("board", "model"), "How fast a worker has lately answered."
)
PARKED = Metric(
    "worker_parked_bytes",
    GaugeMetricFamily,
    ("board", "model"),
    "Memory in which workers keep conversations that others displaced.",
)
BOARD = Metric(
    "board_serving", GaugeMetricFamily, ("board", "version"), "1 of a living board, 0 of one that is drained."
)
LOAD = Metric(
    "board_npu_load_ratio",
    GaugeMetricFamily,
    ("board", "core"),
    "How much of the last second a core of the NPU was busy.",
)
CLOCK = Metric(
    "board_npu_clock_hertz", GaugeMetricFamily, ("board",), "The clock of the NPU: low while nothing runs, and by heat."
)
HIGHEST = Metric("board_npu_highest_clock_hertz", GaugeMetricFamily, ("board",), "The fastest it can be set to.")
HEAT = Metric("board_temperature_celsius", GaugeMetricFamily, ("board",), "Of the hottest sensor.")
LIMIT = Metric(
    "board_temperature_limit_celsius", GaugeMetricFamily, ("board",), "The temperature that its kernel holds it to."
)
HOT = Metric(
    "board_hot", GaugeMetricFamily, ("board",), "1 while heat slows it down and its batches are paced, else 0."
)
MEMORY = Metric("board_memory_bytes", GaugeMetricFamily, ("board",), "All there is.")
AVAILABLE = Metric("board_memory_available_bytes", GaugeMetricFamily, ("board",), "What programs can still have.")

METRICS: tuple[Metric, ...] = (
    *(REQUESTS, REDIS, ENDED, *TOTALS.values(), READ, *TIMES.values(), WAITING, RUNNING, ESTIMATE, OPEN),
    *(BATCHES, ITEMS, LOADS, UNLOADS),
    *(WORKER, PREFILL, DECODE, PARKED, BOARD, LOAD, CLOCK, HIGHEST, HEAT, LIMIT, HOT, MEMORY, AVAILABLE),
)
"""All there are."""


class HttpRequests:
    """Counts the requests of one API process."""

    def __init__(self) -> None:
        self.counted: Counter[tuple[str, str]] = Counter()
        """By route and status."""

    def count(self, scope: Scope, status: int) -> None:
        """A request of that scope has been answered so."""
        self.counted[getattr(scope.get("route"), "path", OTHER), str(status)] += 1


@router.get("/metrics", summary="Show the figures for Prometheus", response_class=Response)
async def show_metrics(http: Request) -> Response:
    """In the text format of Prometheus. Jobs, queues and boards are those of the whole service, whichever process is asked."""
    service = None
    try:
        async with asyncio.timeout(PATIENCE):
            service = await _read(services_of(http))
    except (QueueUnavailable, TimeoutError):
        pass  # a gauge says so, and what was known of queues and boards is not told as that of now
    own: HttpRequests = http.app.state.requests
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Process(own.counted, redis=service is not None))
    if service is not None:
        registry.register(service)
    return Response(generate_latest(registry), headers={"cache-control": "no-store"}, media_type=CONTENT_TYPE_LATEST)


async def _read(services: Services) -> _Service:
    """Raises `QueueUnavailable`."""
    roster, queues = services["roster"], services["queues"]
    if not roster.snapshot.breaths:
        await roster.refresh()  # none known yet is not the same as none there
    snapshot = roster.snapshot
    models = [status.card.id for status in snapshot.models]
    views = await queues.view(models)
    counts = await queues.counts()
    batches = await services["batches"].unfinished()
    return _Service(counts, dict(zip(models, views, strict=True)), snapshot, batches)


class _Process(Collector):
    """What this process knows by itself."""

    def __init__(self, requests: Mapping[tuple[str, str], int], *, redis: bool) -> None:
        self._requests = requests
        self._redis = redis

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        yield _counter(REQUESTS, self._requests.items())
        yield GaugeMetricFamily(PREFIX + REDIS.name, REDIS.meaning, value=self._redis)


class _Service(Collector):
    """The service at one moment."""

    def __init__(
        self, counts: Counts, queues: Mapping[str, QueueView], snapshot: Snapshot, batches: Sequence[Progress]
    ) -> None:
        self._counts = counts
        self._queues = queues
        self._snapshot = snapshot
        self._batches = batches

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        yield from self._jobs()
        for metric, rows in (*self._queue_gauges(), *self._batch_gauges(), *self._board_gauges()):
            family = GaugeMetricFamily(PREFIX + metric.name, metric.meaning, labels=metric.labels)
            for labels, value in rows:
                family.add_metric(labels, value)
            yield family

    def _jobs(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        served = sorted({self._model(worker.model) for worker in self._snapshot.workers if worker.model is not None})
        keys = list(product(served, (lane.value for lane in Lane)))
        ends = ((key, outcome, count) for key, all in self._counts.ends().items() for outcome, count in all.items())
        ended = (((*self._labels(key), outcome), count) for key, outcome, count in ends)
        yield _counter(ENDED, ended, ((*key, outcome) for key, outcome in product(keys, (*FinishReason, *FailureCode))))
        for name, metric in TOTALS.items():
            totals = self._counts.total(name).items()
            yield _counter(metric, ((self._labels(key), count) for key, count in totals), keys)
        reads = ((key, why, count) for key, all in self._counts.read().items() for why, count in all.items())
        yield _counter(READ, (((*self._labels(key), why), count) for key, why, count in reads))
        of_served: tuple[tuple[str, Metric, Iterable[tuple[str, ...]]], ...] = (
            ("loads", LOADS, product(served)),
            ("unloads", UNLOADS, product(served, Unload)),
        )
        for name, metric, none_yet in of_served:
            of_models = self._counts.of_models(name).items()
            rows = (((self._model(model), *rest), count) for (model, *rest), count in of_models)
            yield _counter(metric, rows, none_yet)
        for name, metric in TIMES.items():
            yield self._histogram(name, metric)

    def _histogram(self, name: str, metric: Metric) -> HistogramMetricFamily:
        family = HistogramMetricFamily(PREFIX + metric.name, metric.meaning, labels=metric.labels)
        bounds = [*(str(bound / 1000) for bound in BOUNDS[name]), "+Inf"]
        summed: dict[tuple[str, str], tuple[list[int], float]] = {}
        for key, seen in self._counts.histogram(name).items():
            within, seconds = summed.get(self._labels(key), ([0] * len(bounds), 0.0))
            added = [before + more for before, more in zip(within, seen.within, strict=True)]
            summed[self._labels(key)] = (added, seconds + seen.seconds)
        for labels, (within, seconds) in summed.items():
            family.add_metric(labels, list(zip(bounds, map(float, within), strict=True)), seconds)
        return family

    def _labels(self, key: tuple[str, Lane]) -> tuple[str, str]:
        model, lane = key
        return (self._model(model), lane.value)

    def _model(self, model: str) -> str:
        return model if model in self._queues else OTHER

    def _queue_gauges(self) -> Iterator[_Rows]:
        queues = self._queues.items()
        yield (
            WAITING,
            [((model, lane.value), count) for model, view in queues for lane, count in view.waiting.items()],
        )
        yield RUNNING, [((model,), view.standing.running) for model, view in queues]
        served = {worker.model for worker in self._snapshot.workers}  # of others nobody can tell
        waits = [
            ((model,), view.standing.wait(sum(view.waiting.values()))) for model, view in queues if model in served
        ]
        yield ESTIMATE, [(labels, wait) for labels, wait in waits if wait is not None]
        yield OPEN, [((model,), view.standing.gate is Gate.OPEN) for model, view in queues]

    def _batch_gauges(self) -> Iterator[_Rows]:
        states = [state for state in BatchState if state not in OVER]
        yield BATCHES, [((state,), sum(each.state is state for each in self._batches)) for state in states]
        total, completed, failed = (
            sum(getattr(each, name) for each in self._batches) for name in ("total", "completed", "failed")
        )
        yield (
            ITEMS,
            [(("completed",), completed), (("failed",), failed), (("left",), max(0, total - completed - failed))],
        )

    def _board_gauges(self) -> Iterator[_Rows]:
        workers: dict[tuple[str, ...], list[Presence]] = defaultdict(list)
        for worker in self._snapshot.workers:
            workers[worker.board, worker.model or OTHER].append(worker)
        yield WORKER, [(labels, sum(its.state in LOADED for its in each)) for labels, each in workers.items()]
        for metric, name in ((PREFILL, "prefill_tps"), (DECODE, "decode_tps")):
            speeds = {labels: [getattr(its, name) for its in each] for labels, each in workers.items()}
            known = {labels: [speed for speed in each if speed is not None] for labels, each in speeds.items()}
            yield metric, [(labels, mean(each)) for labels, each in known.items() if each]
        yield PARKED, [(labels, sum(its.parked for its in each)) for labels, each in workers.items()]
        breaths = self._snapshot.breaths
        yield BOARD, [((breath.board, breath.version), not breath.drained) for breath in breaths]
        machines = [((breath.board,), breath.machine) for breath in breaths if breath.machine is not None]
        yield (
            LOAD,
            [
                ((*labels, str(core)), percent / 100)
                for labels, its in machines
                for core, percent in enumerate(its.npu_load or ())
            ],
        )
        yield CLOCK, [(labels, its.npu_hertz) for labels, its in machines if its.npu_hertz is not None]
        yield HIGHEST, [(labels, its.npu_highest) for labels, its in machines if its.npu_highest is not None]
        yield HEAT, [(labels, its.temperature) for labels, its in machines if its.temperature is not None]
        yield LIMIT, [(labels, its.limit) for labels, its in machines if its.limit is not None]
        yield HOT, [(labels, its.hot) for labels, its in machines if its.hot is not None]
        yield MEMORY, [(labels, its.memory) for labels, its in machines]
        yield AVAILABLE, [(labels, its.memory_available) for labels, its in machines]


_Rows = tuple[Metric, Sequence[tuple[tuple[str, ...], float]]]
"""A gauge, and its values with their labels."""


def _counter(
    metric: Metric, rows: Iterable[tuple[tuple[str, ...], int]], none_yet: Iterable[tuple[str, ...]] = ()
) -> CounterMetricFamily:
    """Rows of the same labels are summed: those of models that are gone.

    What may be counted next is 0 until it is: Prometheus takes a series that begins with 1 for one that did not grow, so
    the first failure would be none.
    """
    summed: dict[tuple[str, ...], int] = dict.fromkeys(none_yet, 0)
    for labels, count in rows:
        summed[labels] = summed.get(labels, 0) + count
    family = CounterMetricFamily(PREFIX + metric.name, metric.meaning, labels=metric.labels)
    for labels, count in summed.items():
        family.add_metric(labels, count)
    return family
