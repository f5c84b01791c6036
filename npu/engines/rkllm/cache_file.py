"""What the RKLLM runtime has read of a prompt, written to a file and loaded again: how, how fast, and whether it is right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npu.engine import Prompt, Sampling
from npu.engines.rkllm.generation import RkllmGeneration
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.engines.rkllm.sampling import beyond_native, to_native
from npu.rkllm.abi import Answer, Run, Tokens

COMPARED = 8
"""Tokens said after a prefix, once read and once loaded, that must be the same."""
_GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """A prefix that was read, written and loaded. Times in milliseconds."""

    size: int
    """Bytes of the file; 0 when the runtime wrote none, and then nothing further was tried."""
    read: float
    """Until the first token, with the prefix read."""
    cached: float = 0.0
    """Until the first token, with the prefix in the cache already."""
    write: float = 0.0
    """To write it, a run of one token included."""
    load: float | None = None
    """Until the first token, with the prefix loaded; None when the runtime did not take it."""
    same: bool | None = None
    """Whether the same was said afterwards; None where nobody could say the same twice."""


def try_file(
    loaded: LoadedModel, path: Path, prefix: Sequence[int], compared: int = COMPARED, *, by_logits: bool = False
) -> Trial:
    """Read a prefix, have it written, load it, and see what it says then. The cache is empty afterwards.

    `by_logits` compares what is sampled from logits where the runtime cannot say the same twice. Raises `EngineFailed`.
    """
    cache, handle = loaded.cache, loaded.handle
    cache.clear()
    said, read = _answer(loaded, prefix, compared)
    _, cached = _answer(loaded, prefix, 1)
    begun = time.monotonic()
    write_file(loaded, path, prefix)
    written = (time.monotonic() - begun) * 1000
    size = path.stat().st_size if path.exists() else 0
    if not size:
        return Trial(0, read, cached)
    cache.clear()
    begun = time.monotonic()
    if not handle.load_prompt_cache(path):
        return Trial(size, read, cached, written)
    took = (time.monotonic() - begun) * 1000
    try:
        again, first = _answer(loaded, prefix, compared)
        if not said and by_logits:
            cache.clear()
            again = _answer_by_logits(loaded, prefix, compared)
    finally:
        handle.release_prompt_cache()
        cache.clear()
    if not said and by_logits:
        said = _answer_by_logits(loaded, prefix, compared)
        cache.clear()
    return Trial(size, read, cached, written, took + first, again == said if said else None)


def write_file(loaded: LoadedModel, path: Path, tokens: Sequence[int], adapter: str | None = None) -> None:
    """Have what is read of `tokens` written, by a run of them that says one token more. Raises `EngineFailed`.

    Where that can only be ended by a pause or an abort, the cache is empty afterwards.
    """
    can = loaded.family.CAPABILITIES
    one = 1 if can.per_run_max_tokens else None
    run = Run(inputs=[Tokens(tokens)], cache_file=path, max_tokens=one, adapter=adapter)
    # What ends by itself or is paused has ended well, while nobody knows what is written of a run that is aborted.
    call = loaded.handle.start(run, limit=2 if one else 1, pause=Answer.PAUSE in can.answers)
    for _ in call:
        pass
    if call.stopped:
        loaded.cache.clear()


def _answer(loaded: LoadedModel, prefix: Sequence[int], count: int) -> tuple[list[int], float]:
    """What is said after the prefix, nothing where nobody could say the same twice; and milliseconds until it begins."""
    size = len(loaded.vocabulary)
    greedy = beyond_native(_GREEDY, loaded.defaults, loaded.family.CAPABILITIES, size) is None
    sampling = _GREEDY if greedy else loaded.defaults
    native = to_native(sampling, size)
    begun = time.monotonic()
    read: list[float] = []
    prompt = Prompt([*prefix, prefix[-1]], count)
    said = []
    for piece in RkllmGeneration(loaded, prompt, sampling, native, None):
        read.append((time.monotonic() - begun) * 1000)
        said.append(piece.token)
    return (said if greedy else []), read[0] if read else (time.monotonic() - begun) * 1000


def _answer_by_logits(loaded: LoadedModel, prefix: Sequence[int], count: int) -> list[int]:
    return [piece.token for piece in RkllmGeneration(loaded, Prompt([*prefix, prefix[-1]], count), _GREEDY, None, None)]
