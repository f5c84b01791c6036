"""Parking for the RKLLM runtime, which writes its cache at the end of a run and loads it for the next ones."""

from __future__ import annotations

from collections.abc import Sequence

from npu.engines import option
from npu.engines.parking import MEGABYTE, Costs, Parking
from npu.engines.rkllm.cache_file import write_file
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.engines.rkllm.options import OPTIONS
from npu.errors import EngineFailed
from npu.memory_file import MemoryFile
from npu.model import Model
from npu.self_test import SelfTest


class RkllmFiles:
    """See `npu.engines.parking.Files`."""

    def __init__(self, loaded: LoadedModel, prefill_tps: float | None) -> None:
        """`prefill_tps` is what the self-test measured, which holds until a long prompt was read."""
        self._loaded = loaded
        self._prefill_tps = prefill_tps or 0.0

    @property
    def read_ms(self) -> float:
        speed = self._loaded.prefill_speed or self._prefill_tps
        return 1000 / speed if speed else 0.0

    def write(self, file: MemoryFile, tokens: Sequence[int], adapter: str | None) -> int:
        try:
            write_file(self._loaded, file.path, tokens, adapter)
        except EngineFailed:
            self._loaded.cache.clear()
            raise
        return len(tokens)

    def load(self, file: MemoryFile) -> bool:
        return self._loaded.handle.load_prompt_cache(file.path)

    def release(self) -> None:
        if not self._loaded.handle.release_prompt_cache():
            raise EngineFailed("The RKLLM runtime did not release a prompt cache. The model is loaded anew.")


def open_parking(loaded: LoadedModel, model: Model, test: SelfTest | None) -> Parking | None:
    """A place for conversations; None where the self-test did not show that it helps, or the manifest wants none."""
    most = most_parked(model)
    if not most or test is None or not test.parks:
        return None
    assert test.park_ms is not None and test.unpark_ms is not None and test.parked_bytes is not None
    said = 1000 / test.decode_tps if test.decode_tps else 0.0
    costs = Costs(test.parked_bytes, test.park_ms, test.unpark_ms, once=said)
    return Parking(RkllmFiles(loaded, test.prefill_tps), most, costs)


def most_parked(model: Model) -> int:
    """Bytes that a model may park at most; 0 is nothing."""
    return int(option(model, OPTIONS, "parking_mb")) * MEGABYTE
