"""Workers of one model, and the memory domains of the NPU, each have their room."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
import redis

from npu.catalog import Catalog
from tasks import keys
from tests.tasks.board.small_board import GIB, Board


def test_a_model_has_as_many_workers_as_fit(board: Board, client: redis.Redis) -> None:
    """Nothing is unloaded for the further ones. Their lack is told with the figures, and ends when there is room and work."""
    board.models["middle"] = model = replace(board.models["middle"], instances=3)
    board.agent._announced.catalog = Catalog(tuple(board.models.values()))
    board.has("tiny")
    board.agent._loading.load(model)
    assert board.loaded() == {"tiny", "middle", "middle#2"}
    assert board.agent._workers.reserved() == 4.5 * GIB
    note = board.agent._loading.fewer["middle"]
    assert note.startswith("It has 2 of the 3 workers") and "needs about 2048 MiB" in note
    board.put_away("middle")
    assert board.loaded() == {"tiny"} and not board.agent._loading.fewer
    board.agent._loading.load(model)
    board.agent._loading.unload(board.models["tiny"])
    board.agent._meet()
    assert board.loaded() == {"middle", "middle#2"}  # nobody waits
    client.zadd(keys.waiting("middle"), {"j": 1})
    board.agent._meet()
    assert board.loaded() == {"middle", "middle#2", "middle#3"}
    assert board.agent._workers.reserved() == 6 * GIB and not board.agent._loading.fewer
    board.agent._loading.unload(model)
    assert board.loaded() == set() and board.agent._workers.reserved() == 0


@pytest.mark.parametrize("domains", [range(16)])
def test_each_worker_of_a_model_has_a_memory_domain(board: Board) -> None:
    """They hold the weights twice."""
    board.agent._loading.load(replace(board.models["small"], instances=2))
    assert board.agent._workers.places(leaving=True) == {"small": (0, GIB), "small#2": (1, GIB)}


@pytest.mark.parametrize("single_model", [True])
def test_one_model_at_a_time_may_have_two_workers(board: Board) -> None:
    """It is one model."""
    board.agent._loading.load(replace(board.models["small"], instances=2))
    assert board.loaded() == {"small", "small#2"}


@pytest.mark.parametrize("domains", [(0,)])
def test_a_model_that_comes_back_has_its_own_domain_and_its_second_worker_another(board: Board) -> None:
    """It leaves the one it has; a second worker is there beside it."""
    board.has("large")
    large, needed = board.models["large"], int(3.5 * GIB)
    assert board.agent._room.domain(large, needed, (0,)) == 0
    assert board.agent._room.domain(large, needed, (0,), number=2) is None


@pytest.mark.parametrize("domains", [range(16)])
def test_each_model_has_a_memory_domain_of_its_own(board: Board) -> None:
    """A large one has two. Each worker is told its own, and whoever comes later gets what is free by then."""
    board.has("huge", "tiny")
    assert board.agent._workers.places(leaving=True) == {"huge": (0, 5 * GIB), "tiny": (2, GIB // 2)}
    started = board.agent._workers._children["tiny"].process
    assert isinstance(started, subprocess.Popen) and list(started.args)[-2:] == ["--memory-domain", "2"]  # type: ignore[arg-type]
    board.agent._loading.load_after_others(board.models["small"])
    assert board.loaded() == {"tiny", "small"}
    assert board.agent._workers.places(leaving=True)["small"] == (0, GIB)
