"""The board whose memory is shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from npu.hardware import Memory
from tasks.board import agent, loading, room, workers
from tasks.prompting import setup
from tests.fakes.clock import Clock
from tests.tasks.board.small_board import GIB, SIZES, Board


@pytest.fixture(autouse=True)
def rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the next round of an agent's loop for long."""
    monkeypatch.setattr(agent, "ROUND", 0.1)


@pytest.fixture
def least_stay() -> float:
    return 0.0


@pytest.fixture
def single_model() -> bool:
    return False


@pytest.fixture
def domains() -> Sequence[int]:
    """The memory domains of the NPU that each model may be put into."""
    return ()


@pytest.fixture
def board(
    standing: None,
    client: redis.Redis,
    valkey_url: str,
    tmp_path: Path,
    least_stay: float,
    single_model: bool,
    domains: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Board]:
    sizes = {name: int(size * GIB) for name, size in (SIZES | {"giant": 6.5}).items()}
    monkeypatch.setattr(
        loading, "describe", lambda model, _: SimpleNamespace(memory_bytes=sizes[model.id], memory_domains=domains)
    )
    monkeypatch.setattr(setup, "read_memory", lambda: Memory(64 * GIB, 60 * GIB))
    monkeypatch.setattr(workers, "time", clock := Clock())
    made = Board(client, valkey_url, tmp_path, clock, least_stay=least_stay, single_model=single_model)
    yield made
    made.agent._workers.stop_all(0.0)


@pytest.fixture
def gone_at_look(board: Board, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have all that leave gone right after memory was looked at for so many times."""
    counted, left = room.Room._free, count()

    def free_and_gone(looking: room.Room, memory: Memory) -> int:
        found = counted(looking, memory)
        if not next(left):
            board.gone()
        return found

    def at(look: int) -> None:
        nonlocal left
        left = count(1 - look)

    monkeypatch.setattr(room.Room, "_free", free_and_gone)
    return at
