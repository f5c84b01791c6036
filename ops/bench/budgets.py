"""What the service may cost: one line for every figure that `bench overhead` measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """One figure and its bound. `id` is what a JSON report calls it, and never changes its meaning."""

    id: str
    what: str
    unit: str
    limit: float | None
    """None: measured for people to look at, without a bound."""
    at_least: bool = False
    """The bound is the least that is wanted, not the most."""

    def within(self, measured: float) -> bool | None:
        """Whether a measured value keeps the bound; None when there is none."""
        if self.limit is None:
            return None
        return measured >= self.limit if self.at_least else measured <= self.limit


BUDGETS = (
    Budget("ready", "`up` to ready, model load aside", "s", 5),
    Budget("idle_written", "idle: written to disk in 10 minutes", "KB", 64),
    Budget("idle_cpu", "idle: share of one core", "%", 1),
    Budget("memory_api", "memory (PSS): API", "MB", 90),
    Budget("memory_worker", "memory (PSS): worker, Celery parent and child", "MB", 110),
    Budget("memory_store", "memory (PSS): Valkey", "MB", 15),
    Budget("memory_renderer", "memory (PSS): the worker's template renderer", "MB", None),
    Budget("memory_board", "memory (PSS): board agent", "MB", None),
    Budget("memory_up", "memory (PSS): `up` and its guard", "MB", None),
    Budget("first_token_p50", "first token added, one client: p50", "ms", 3),
    Budget("first_token_p99", "first token added, one client: p99", "ms", 10),
    Budget("first_token_beside_p50", "first token added, beside 32 open streams: p50", "ms", 5),
    Budget("first_token_beside_p99", "first token added, beside 32 open streams: p99", "ms", None),
    Budget("cpu_fast", "CPU per token, one stream at 500 tokens/s", "µs", 125),
    Budget("cpu_board", "CPU per token, one stream at 30 tokens/s", "µs", 405),
    Budget("share", "share of the engine's own speed the client sees", "", 0.99, at_least=True),
    Budget("written", "written to disk per 1,000 streamed tokens", "KB", 300),
    Budget("second_turn", "second turn: tokens prefilled beside the new ones", "", 8),
    Budget("engine_idle_p50", "engine idle between two queued jobs: p50", "ms", 2),
    Budget("engine_idle_p99", "engine idle between two queued jobs: p99", "ms", 5),
    Budget("health_p99", "/healthz while 64 jobs wait: p99", "ms", 50),
    Budget("streams", "many open streams: share delivered whole", "", 1, at_least=True),
    Budget("stream_memory", "many open streams: memory of the API for each", "KB", 60),
)
BY_ID = {budget.id: budget for budget in BUDGETS}
