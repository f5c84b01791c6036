"""The measurements of `bench overhead`, each on the real path of the real service."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from npu.catalog import find_models
from npu.engine import Prompt
from npu.engines import Setup, open_engine
from ops.bench.client import Line, Stream, chat
from ops.bench.crowd import Crowd, Plan
from ops.bench.figures import Figure, median, percentile
from ops.bench.gate import Gate
from ops.bench.processes import CpuMeter, block_writes, of_one_model, pss, size
from ops.bench.service import BOARD, FAST, GATE, PLAIN, QUICK, Service
from ops.bench.watch import Watch

IDLE_PERIOD = 600.0
"""Seconds that idle figures are told for."""
SHORT = "Twelve words"
"""What the echo is asked to say when it is to be brief."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long to measure."""

    starts: int
    idle_seconds: float
    first_tokens: int
    rounds: int
    fast_tokens: int
    board_tokens: int
    written_tokens: int
    queued_jobs: int
    health_calls: int
    streams: int


FULL = Scale(3, 60.0, 500, 5, 2000, 300, 1000, 300, 1000, 1000)
BRIEF = Scale(1, 15.0, 100, 2, 1000, 90, 400, 60, 200, 300)


def measurements(scale: Scale) -> dict[str, Callable[[Service], list[Figure]]]:
    """Every measurement by what it is called while it runs, in the order that disturbs none of them."""
    return {
        "start": lambda service: start(service, scale),
        "idle": lambda service: idle(service, scale),
        "memory": memory,
        "first token": lambda service: first_token(service, scale),
        "30 tokens/s": lambda service: board_pace(service, scale),
        "500 tokens/s": lambda service: fast(service, scale),
        "second turn": second_turn,
        "bytes written": lambda service: written(service, scale),
        "queued jobs": lambda service: queued_jobs(service, scale),
        "/healthz beside waiting jobs": lambda service: health(service, scale),
        "first token beside 32 streams": lambda service: first_token_beside(service, scale),
        f"{scale.streams} open streams": lambda service: streams(service, scale),
    }


def start(service: Service, scale: Scale) -> list[Figure]:
    """From `up` to the first yes of /readyz."""
    seconds = [service.ready_seconds]
    for _ in range(scale.starts - 1):
        with Service(service.share) as another:
            seconds.append(another.ready_seconds)
    return [Figure("ready", median(seconds), len(seconds), {"slowest_s": max(seconds)})]


def idle(service: Service, scale: Scale) -> list[Figure]:
    """What the service does while nobody asks anything, with one model loaded."""
    service.load(QUICK)
    time.sleep(3)  # the last job's lease and renewals are over
    parts = service.members()
    blocks, files, meter = block_writes(parts), size(service.data), CpuMeter(parts)
    time.sleep(scale.idle_seconds)
    used = meter.read()
    factor = IDLE_PERIOD / used["elapsed"]
    shares = {f"{role}_percent": 100 * used[role] / used["elapsed"] for role in sorted(set(used) - {"elapsed"})}
    grown = size(service.data) - files
    return [
        Figure("idle_written", grown * factor / 1e3, 1, {"block_kb": (block_writes(parts) - blocks) * factor / 1e3}),
        Figure("idle_cpu", shares["all_percent"], 1, shares),
    ]


def memory(service: Service) -> list[Figure]:
    """Proportional set sizes with one model loaded, which has answered."""
    service.load(QUICK)
    parts = of_one_model(service.members(), QUICK)
    ours = [part for part in parts if part.role != "renderer" or part.model]
    return [
        Figure("memory_api", pss(ours, "api")),
        Figure(
            "memory_worker",
            pss(ours, "parent", "child"),
            1,
            {"parent_mb": pss(ours, "parent"), "child_mb": pss(ours, "child")},
        ),
        Figure("memory_store", pss(ours, "store")),
        Figure("memory_renderer", pss(ours, "renderer")),
        Figure("memory_board", pss(ours, "board")),
        Figure("memory_up", pss(ours, "up", "guard")),
    ]


def first_token(service: Service, scale: Scale) -> list[Figure]:
    """From the request's last byte out to the first text in, less what the engine says it took."""
    service.load(QUICK)
    added = _added(service, scale.first_tokens)
    detail = {"fastest_ms": min(added), "p90_ms": percentile(added, 0.9)}
    return [
        Figure("first_token_p50", percentile(added, 0.5), len(added), detail),
        Figure("first_token_p99", percentile(added, 0.99), len(added)),
    ]


def first_token_beside(service: Service, scale: Scale) -> list[Figure]:
    """The same while 32 other streams are open: four models answer at a board's pace, eight clients each."""
    for model in BOARD:
        service.load(model)
    requests = tuple((chat(model, SHORT, max_tokens=4000, ignore_eos=True).decode(), "") for model in BOARD)
    with Crowd(Plan(service.port, 32, requests)) as crowd:
        crowd.heard()
        time.sleep(0.5)
        added = _added(service, scale.first_tokens)
    service.settle()
    return [
        Figure("first_token_beside_p50", percentile(added, 0.5), len(added), {"speaking": len(BOARD)}),
        Figure("first_token_beside_p99", percentile(added, 0.99), len(added)),
    ]


def _added(service: Service, count: int) -> list[float]:
    added = []
    with Line(service.port) as line:
        for number in range(count):
            stream = line.stream(chat(QUICK, f"{number} {SHORT}", max_tokens=6))
            added.append((stream.deltas[0] - stream.sent) * 1000 - stream.timings["prompt_ms"])
    return added


def fast(service: Service, scale: Scale) -> list[Figure]:
    """One stream at 500 tokens/s: what it costs, and how much of that speed arrives."""
    service.load(FAST)
    costs, shares, by_role = [], [], []
    for _ in range(scale.rounds):
        stream, cost = _cost(service, FAST, scale.fast_tokens)
        costs.append(cost["all"])
        by_role.append(cost)
        deltas = stream.deltas
        shares.append((scale.fast_tokens - 1) / 500 / (deltas[-1] - deltas[0]))
    middle = by_role[costs.index(median(costs))]
    return [
        Figure("cpu_fast", median(costs), len(costs), _named(middle) | _engine_alone(service, FAST, 1000)),
        Figure("share", median(shares), len(shares), {"worst": min(shares)}),
    ]


def board_pace(service: Service, scale: Scale) -> list[Figure]:
    """One stream at 30 tokens/s, where each token travels alone."""
    model = BOARD[0]
    service.load(model)
    _, cost = _cost(service, model, scale.board_tokens)
    return [Figure("cpu_board", cost["all"], 1, _named(cost) | _engine_alone(service, model, 60))]


def _cost(service: Service, model: str, tokens: int) -> tuple[Stream, dict[str, float]]:
    """One stream of so many tokens, and the microseconds of CPU that each cost, by role."""
    meter = CpuMeter(of_one_model(service.members(), model))
    with Line(service.port) as line:
        stream = line.stream(chat(model, SHORT, max_tokens=tokens, ignore_eos=True))
    used = meter.read()
    counted = stream.timings["predicted_n"]
    if counted != tokens:
        raise RuntimeError(f"asked for {tokens} tokens, got {counted:.0f}")
    return stream, {role: seconds / tokens * 1e6 for role, seconds in used.items() if role != "elapsed"}


def _engine_alone(service: Service, model: str, tokens: int) -> dict[str, float]:
    """What the echo's own waiting costs in a process with nothing else: part of the child's share, and not of the service."""
    found = find_models(service.folder / "models").find(model)
    if found is None:
        raise LookupError(model)
    engine = open_engine(found, Setup(service.folder))
    prompt = Prompt(engine.tokenizer.encode(SHORT), tokens)
    generation = engine.generate(prompt, found.sampling(ignore_eos=True))
    begun = time.process_time()
    for _ in generation:
        pass
    return {"echo_alone_us": (time.process_time() - begun) / tokens * 1e6}


def _named(cost: dict[str, float]) -> dict[str, float]:
    return {f"{role}_us": value for role, value in sorted(cost.items()) if role != "all"}


def written(service: Service, scale: Scale) -> list[Figure]:
    """Growth of everything below the data directory while tokens come one by one."""
    service.load(PLAIN)
    parts = service.members()
    blocks, files = block_writes(parts), size(service.data)
    with Line(service.port) as line:
        line.stream(chat(PLAIN, SHORT, max_tokens=scale.written_tokens, ignore_eos=True))
    time.sleep(1.5)  # what the store writes, it writes within a second
    factor = 1000 / scale.written_tokens
    grown = size(service.data) - files
    detail = {"block_kb": (block_writes(parts) - blocks) * factor / 1e3}
    return [Figure("written", grown * factor / 1e3, scale.written_tokens, detail)]


def second_turn(service: Service) -> list[Figure]:
    """How many tokens of a conversation's second turn the engine read, beside those of the new message."""
    first = "How do you do, and how are the others?"
    second = "Well enough. And the weather?"
    with Line(service.port) as line:
        one = line.stream(chat(QUICK, first))
        turns = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": one.text},
            {"role": "user", "content": second},
        ]
        two = line.stream(chat(QUICK, turns))
    read = two.timings["prompt_n"]
    detail = {"read_tokens": read, "new_tokens": len(second), "cached_tokens": two.timings["cache_n"]}
    return [Figure("second_turn", read - len(second), 1, detail)]


def queued_jobs(service: Service, scale: Scale) -> list[Figure]:
    """From the end of one job in the record to the engine's first step for the next, while others wait."""
    with Gate(service) as gate, Crowd(Plan(service.port, scale.queued_jobs, _requests())) as crowd:
        crowd.heard()
        with Watch(service.redis_url) as watch:
            gate.open()
            done = crowd.heard()
        gaps, claims = watch.gaps()
    if done["broken"] or len(gaps) < scale.queued_jobs / 2:
        raise RuntimeError(f"only {done['whole']} of {scale.queued_jobs} answers were whole: {done['broken']}")
    detail = {"to_claim_p50_ms": median(claims), "prepare_p50_ms": median(gaps) - median(claims)}
    return [
        Figure("engine_idle_p50", percentile(gaps, 0.5), len(gaps), detail),
        Figure("engine_idle_p99", percentile(gaps, 0.99), len(gaps)),
    ]


def _requests() -> tuple[tuple[str, str], ...]:
    """Prompts that share no beginning, so that the engine reads each of them: some 15 tokens, 7 ms."""
    texts = [f"{chr(ord('a') + number)} {SHORT}" for number in range(16)]
    return tuple((chat(GATE, text).decode(), text) for text in texts)


def health(service: Service, scale: Scale) -> list[Figure]:
    """How long /healthz takes while a queue is full."""
    with Gate(service), Crowd(Plan(service.port, 64, _requests())) as crowd, Line(service.port) as line:
        crowd.heard()
        took = []
        for _ in range(scale.health_calls):
            begun = time.perf_counter()
            status, _ = line.get("/healthz")
            took.append((time.perf_counter() - begun) * 1000)
            if status != 200:
                raise RuntimeError(f"/healthz answered {status}")
            time.sleep(0.002)
    service.settle()
    return [Figure("health_p99", percentile(took, 0.99), len(took), {"p50_ms": median(took), "max_ms": max(took)})]


def streams(service: Service, scale: Scale) -> list[Figure]:
    """So many streams open at once in one API process, and then all answered."""
    before = pss(service.members(), "api")
    with Gate(service) as gate, Crowd(Plan(service.port, scale.streams, _requests())) as crowd:
        opened = crowd.heard()["open"]
        grown = pss(service.members(), "api") - before
        gate.open()
        begun = time.monotonic()
        done: dict[str, Any] = crowd.heard()
        took = time.monotonic() - begun
    after = pss(service.members(), "api") - before
    broken = {f"broken: {why}": float(count) for why, count in done["broken"].items()}
    detail = {"opened": opened, "whole": done["whole"], "answered_s": took, **broken}
    return [
        Figure("streams", done["whole"] / scale.streams, scale.streams, detail),
        Figure("stream_memory", grown * 1e3 / scale.streams, scale.streams, {"kept_after_mb": after}),
    ]
