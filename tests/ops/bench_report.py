"""Reports of `bench model` that nobody measured."""

from __future__ import annotations

from typing import Any

from ops.bench.model import vendor
from ops.bench.model.conditions import Conditions
from ops.bench.model.course import Round
from ops.bench.model.report import SCHEMA, ModelFacts, Options, Report, summed_up
from ops.bench.model.sample import Sample


def sample(of_set: str = "performance", prompt: str = "p", run: int = 1, **more: Any) -> Sample:
    """An answer that took as long as the arguments say."""
    told = {"first_token_ms": 200.0, "decode_tokens_per_s": 30.0, "prompt_tokens": 100, "cached_tokens": 0}
    messages = [{"role": "user", "content": "Why?"}]
    return Sample(**{"set": of_set, "prompt": prompt, "run": run, "messages": messages, **told, **more})


def report(samples: list[Sample], faults: tuple[str, ...] = (), model: str = "m") -> Report:
    """A report of these samples."""
    row = vendor.named("RK3588/Qwen3/0.6B/w8a8")
    return Report(
        schema=SCHEMA,
        command="bench model",
        version="1",
        service_version=None,
        taken_at="2026-11-28T01:02:03+00:00",
        seconds=1.0,
        options=Options("all", 2, False, [1, 2], "built-in"),
        model=ModelFacts(id=model, engine="e", engine_version="", quantization="", context_length=8, size_bytes=0),
        valid=not faults,
        faults=list(faults),
        notes=[],
        warm_up=sample("warm_up"),
        summary=summed_up(samples),
        rounds=[Round(2, 1, 1.0, 60, 60.0)],
        vendor=vendor.beside(row, samples),
        conditions=[Conditions(board="b")],
        samples=samples,
    )
