"""Where conversations are parked, of whatever engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from npu.engines import parking as parking_module
from npu.engines.parking import Costs, Parking, Whose
from npu.memory_file import MemoryFile
from tests.npu.engines.test_rkllm_parking import memory_files


class Files:
    """A runtime that writes what it is given, and is slow to load nothing."""

    def __init__(
        self,
        meanwhile: Callable[[], None] = lambda: None,
        read_ms: float = 1000.0,
        while_writing: Callable[[], None] = lambda: None,
    ) -> None:
        self.meanwhile = meanwhile
        self.read_ms = read_ms
        self.while_writing = while_writing

    def write(self, file: MemoryFile, tokens: Sequence[int], adapter: str | None) -> int:
        Path(file.path).write_bytes(bytes(tokens))
        self.while_writing()
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


def test_memory_that_is_wanted_while_it_is_written_is_given_back() -> None:
    """Also where the model is closed over it; and the next conversation is parked as ever."""
    before = memory_files()
    files = Files(while_writing=lambda: parking.empty())
    parking = Parking(files, 1 << 20, Costs(1))
    assert parking.keep(Whose("a"), [1] * 100, 90, 0)
    assert parking.size == 0 and memory_files() == before
    files.while_writing = lambda: None
    assert parking.keep(Whose("a"), [1] * 100, 90, 0) and parking.size == 100
    files.while_writing = parking.close
    assert parking.keep(Whose("b"), [2] * 100, 90, 0)
    assert parking.size == 0 and memory_files() == before


def test_nothing_is_parked_while_others_take_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what was begun to be written; what was parked before stays, and it goes on by itself."""
    now = 1000.0
    monkeypatch.setattr(parking_module.time, "monotonic", lambda: now)
    files = Files()
    parking = Parking(files, 1 << 20, Costs(1))
    assert parking.keep(Whose("a"), [1] * 100, 90, 0)
    files.while_writing = lambda: parking.pause(15)
    assert parking.keep(Whose("b"), [2] * 100, 90, 0)
    now += 14
    assert parking.pause_left == 1 and not parking.keep(Whose("c"), [3] * 100, 90, 0)
    assert parking.size == 100
    files.while_writing = lambda: None
    now += 2
    assert not parking.pause_left and parking.keep(Whose("c"), [3] * 100, 90, 0)
    assert parking.size == 200
    parking.close()


def test_nobody_waits_for_what_hardly_helps_anybody() -> None:
    """A first question is parked before another's only where it would be read for ten times as long as it is written; one that
    has gone on, or that nobody waits for, where that is shorter at all."""
    parking = Parking(Files(read_ms=1.0), 1 << 20, Costs(1, once=30.0))
    first, longer, long = [1] * 200, [1] * 260, [2] * 400
    assert not parking.keep(Whose("a"), first, 150, 0, awaited=True)
    assert parking.keep(Whose("a"), long, 300, 0, awaited=True)
    assert parking.keep(Whose("b"), first, 150, 0)
    assert parking.keep(Whose("b"), longer, 210, 0, awaited=True)
    parking.close()
