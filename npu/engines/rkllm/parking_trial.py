"""Tries out, when a model is first loaded, whether conversations can be parked: rightly, and faster than they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from npu.engines.rkllm.cache_file import Trial, try_file
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.errors import EngineFailed
from npu.memory_file import MemoryFile
from npu.self_test import SelfTest, Verdict

SECONDS = 5.0
"""The longest that it may take."""
PROBE_TOKENS = 64
COMPARED = 4
"""Tokens said after the probe, once read and once loaded, that must be the same."""
MEASURABLE_MS = 10.0
"""A probe that is read in less tells nothing by its time."""
BEGUN = "parking-is-tried"
"""A file in the model's folder of the runtime directory, there while it is tried."""
_TEXT = "The keeper of the light climbed the stairs each evening and counted the steps, for there was little else to count. "


def try_parking(loaded: LoadedModel, test: SelfTest, folder: Path) -> SelfTest:
    """What the self-test has to say of it. It is tried once, for a few seconds at most, with a text of ours.

    A process that ended over it tries no second time: `folder` keeps that it was begun.
    """
    if test.parks is not None or test.not_parked or not test.reuse:
        return test
    if loaded.slots > 1:
        return replace(test, parks=False, not_parked="a file holds the cache of one prompt, and n_batch is above 1")
    prefix = (loaded.tokenizer.encode(_TEXT) * PROBE_TOKENS)[: min(PROBE_TOKENS, loaded.context_length - COMPARED - 1)]
    seconds = sum(
        count / tps for count, tps in ((len(prefix), test.prefill_tps), (3 * COMPARED, test.decode_tps)) if tps
    )
    if seconds > SECONDS:
        return replace(test, parks=False, not_parked=f"to try it would take {seconds:.0f} s")
    begun = folder / BEGUN
    if begun.exists():
        begun.unlink()
        return replace(test, parks=False, not_parked="the process with the model ended when it was tried")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun.touch()
    try:
        file = MemoryFile()
        try:
            trial = try_file(loaded, file.path, prefix, COMPARED, by_logits=test.logits is Verdict.SANE)
        finally:
            file.close()
    except (EngineFailed, OSError) as error:
        loaded.cache.clear()
        return replace(test, parks=False, not_parked=str(error).rstrip("."))
    finally:
        begun.unlink()
    return _judged(test, trial, len(prefix))


def _judged(test: SelfTest, trial: Trial, tokens: int) -> SelfTest:
    read = trial.read - trial.cached
    write = max(0.0, trial.write - trial.cached)
    load = max(0.0, (trial.load or 0.0) - trial.cached)
    if not trial.size:
        why = "the runtime wrote nothing"
    elif trial.load is None:
        why = "the runtime did not load what it had written"
    elif trial.same is None:
        why = "nobody could say the same twice, so it cannot be told whether it is right"
    elif not trial.same:
        why = "the answers after loading were other ones than after reading"
    elif read < MEASURABLE_MS:
        why = f"{tokens} tokens are read in {max(read, 0.0):.0f} ms"
    elif write + load > read / 2:
        why = f"to write and load {tokens} tokens takes {write + load:.0f} ms, and to read them {read:.0f} ms"
    else:
        why = ""
    if why:
        return replace(test, parks=False, not_parked=why)
    size = -(-trial.size // tokens)
    return replace(test, parks=True, park_ms=write / tokens, unpark_ms=load / tokens, parked_bytes=size)
