"""Where conversations are parked, of whatever engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from npu.engines.parking import Costs, Parking, Whose
from npu.memory_file import MemoryFile
from tests.npu.engines.test_rkllm_parking import memory_files


class Files:
    """A runtime that writes what it is given, and is slow to load nothing."""

    read_ms = 1000.0

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile

    def write(self, file: MemoryFile, tokens: Sequence[int], adapter: str | None) -> int:
        Path(file.path).write_bytes(bytes(tokens))
        return len(tokens)

    def load(self, file: MemoryFile) -> bool:
        self.meanwhile()
        return False

    def release(self) -> None:
        """It has nothing."""


def test_memory_that_is_wanted_during_a_load_that_fails_is_given_back() -> None:
    """Once; and the prompt is read as ever."""
    before = memory_files()
    parking = Parking(Files(lambda: parking.empty()), 1 << 20, Costs(1))
    whose, tokens = Whose("a"), list(range(100))
    assert parking.keep(whose, tokens, 90, 0)
    found = parking.find(whose, [*tokens, 1], 0)
    assert found is not None and len(memory_files()) == len(before) + 1
    assert not parking.load(found)
    assert parking.size == 0 and memory_files() == before
