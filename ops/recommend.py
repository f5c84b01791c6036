"""Which models of the index a board can run, and what is known of each before it is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from npu.errors import ModelRefused
from npu.simulator.profile import profile_of
from ops.fold import columns, fold
from ops.index_contexts import reckon
from ops.program import program
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.index import IndexFile, IndexModel
from tasks.board.pull.machine import Machine
from tasks.board.pull.plan import first_fitting, memory_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One model. What nobody knows before its file is there is None."""

    name: str
    """What to pull."""
    runs: bool
    why_not: str | None = None
    engine: str | None = None
    quantization: str | None = None
    size_mb: int | None = None
    """Millions of bytes to fetch."""
    memory_mib: int | None = None
    """What it takes once loaded, at least."""
    context: int | None = None
    """Tokens that it gets where its context is `auto`, of what memory is there. None where nobody knows what it takes."""
    tokens_per_s: float | None = None
    """What the vendor measured on this chip."""
    licence: str = ""


def advise(machine: Machine, index: Mapping[str, IndexModel]) -> list[Advice]:
    """Every model of the index: those for the NPU first, the larger before the smaller, and last those that cannot run."""
    found = [_advice(model, machine) for model in index.values()]
    return sorted(found, key=lambda each: (not each.runs, each.engine != "rkllm", -(each.memory_mib or 0), each.name))


def _advice(model: IndexModel, machine: Machine) -> Advice:
    try:
        file, _ = first_fitting(model, machine)
    except PullFailed as refused:
        return Advice(name=model.name, runs=False, why_not=str(refused), licence=model.licence)
    memory, reckoned = memory_of(model, file), reckon(model, file)
    context = reckoned.chosen(machine.memory) if reckoned is not None else None
    if reckoned is not None and context is not None and (needed := reckoned.needed(context)) > machine.memory:
        why = (
            f"{model.name} takes about {needed >> 20} MiB with a context of {context} tokens, and models may have "
            f"{machine.memory >> 20} MiB here. A shorter context may do: `context_length` in its manifest."
        )
        return Advice(name=model.name, runs=False, why_not=why, licence=model.licence)
    return Advice(
        name=model.name,
        runs=True,
        engine=file.engine,
        quantization=file.dtype,
        size_mb=file.size // 1_000_000 if file.size is not None else None,
        memory_mib=memory >> 20 if memory is not None else None,
        context=context,
        tokens_per_s=_measured(model.name, file, machine),
        licence=model.licence,
    )


def _measured(name: str, file: IndexFile, machine: Machine) -> float | None:
    if file.engine != "rkllm" or machine.soc is None:
        return None
    family, _, size = name.partition(":")
    try:
        return profile_of(machine.soc, family, size, file.dtype).decode_tps
    except ModelRefused:
        return None


WIDE, MIDDLING, NARROW = 80, 60, 45
"""Columns of a terminal below which the table is without what is to be fetched, without kind and speed, and without what it
runs on."""


def table(machine: Machine, found: Sequence[Advice]) -> str:
    """The same for people, as wide as their terminal."""
    rows = [("model", "runs on", "quantization", "to fetch", "memory", "context", "tokens/s")]
    rows += [
        (
            each.name,
            "NPU" if each.engine == "rkllm" else "CPU",
            each.quantization or "",
            f"{each.size_mb:,} MB" if each.size_mb else "?",
            f"{each.memory_mib:,} MiB" if each.memory_mib else "?",
            f"{each.context:,}" if each.context else "?",
            f"{each.tokens_per_s:.1f}" if each.tokens_per_s else "?",
        )
        for each in found
        if each.runs
    ]
    width = columns() or WIDE
    kept = (
        (0, 1, 2, 3, 4, 5, 6)
        if width >= WIDE
        else (0, 1, 2, 4, 5, 6)
        if width >= MIDDLING
        else (0, 1, 4, 5)
        if width >= NARROW
        else (0, 4, 5)
    )
    cells = [[row[place] for place in kept] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    chip = f"the {machine.soc}" if machine.soc else "a machine without an NPU we know"
    runtime = f", runtime {machine.runtime}" if machine.runtime else ""
    lines.insert(0, fold(f"For {chip}{runtime}; models may have {machine.memory >> 20:,} MiB of its memory.", 0) + "\n")
    told = (
        "Memory is the least that a model takes; tokens/s are the vendor's, on this chip.",
        (
            'Context is what a model gets here by `context_length = "auto"`; unset, it is 8,192 tokens at most on the CPU, and '
            "on the NPU what the index knows, else 4,096."
        ),
        "`?` is not known before the file is there, or was not measured.",
        f"Fetch one with `{program()} models pull NAME`.",
    )
    refused = [each.why_not for each in found if each.why_not is not None]
    lines += ["", *(fold(line, 0) for line in told), "", *(fold(line, 2) for line in refused)]
    return "\n".join(lines).rstrip()
