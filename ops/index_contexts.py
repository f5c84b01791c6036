"""Which context each model of the index gets where it is `auto`, and the table of docs/models.md that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from npu.cache_size import LIKE_QWEN3
from npu.context_length import STEPS, largest_that_fits
from npu.engines.llamacpp import engine as llamacpp
from npu.engines.rkllm import load as rkllm
from tasks.board.pull.index import IndexFile, IndexModel
from tasks.board.pull.plan import memory_of
from tasks.board.pull.weights import OVERHEAD
from tasks.prompting.setup import model_memory
from tasks.settings import TaskSettings

BOARDS = (4, 8, 16)
"""Gigabytes of memory."""
GIGABYTE = 1_000_000_000


class Reckoning(NamedTuple):
    """What a file of the index takes, estimated on the high side, before it is there."""

    most: int
    """Tokens that it was made for."""
    needed: Callable[[int], int]
    """Bytes with a context of so many tokens."""

    def chosen(self, memory: int) -> int:
        """Tokens of its context where models may have so many bytes."""
        return largest_that_fits(self.most, memory, self.needed)


def reckon(model: IndexModel, file: IndexFile) -> Reckoning | None:
    """None where nobody knows how large it is, or what it was made for."""
    weights, most = memory_of(model, file), _most(model, file)
    if weights is None or most is None:
        return None
    return Reckoning(most, _needed(model, file, weights - OVERHEAD))


def context_table(index: Mapping[str, IndexModel], settings: TaskSettings) -> Iterator[str]:
    """Its lines: what each file takes with each context, and what it gets on boards of three sizes."""
    sizes = [f"{step // 1024}K" for step in STEPS]
    yield f"| model | file | {' | '.join(sizes)} | {' | '.join(f'{board} GB' for board in BOARDS)} |"
    yield f"|---|---|{'---|' * (len(STEPS) + len(BOARDS))}"
    for model in index.values():
        for file in model.file:
            reckoned = reckon(model, file)
            if reckoned is None:
                continue
            cells = [f"{reckoned.needed(step) / GIGABYTE:.1f}" if step <= reckoned.most else "" for step in STEPS]
            for board in BOARDS:
                memory = model_memory(board * GIGABYTE, settings)
                length = reckoned.chosen(memory)
                cells.append(f"{length // 1024}K" if reckoned.needed(length) <= memory else "no")
            kind = f"NPU, {file.dtype}" if file.engine == "rkllm" else f"CPU, {file.dtype}"
            yield f"| {model.name} | {kind} | {' | '.join(cells)} |"


def _needed(model: IndexModel, file: IndexFile, weights: int) -> Callable[[int], int]:
    cache = model.cache_bytes_per_token or 0
    if file.engine == "rkllm":
        return lambda context: rkllm.memory_needed(weights, cache or LIKE_QWEN3, context)
    return lambda context: llamacpp.memory_needed(weights, cache, context)


def _most(model: IndexModel, file: IndexFile) -> int | None:
    if file.engine == "rkllm":
        return file.context or rkllm.CONTEXT_LENGTH
    return model.trained_context
