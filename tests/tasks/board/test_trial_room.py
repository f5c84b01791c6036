"""A runtime that is tried has memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from npu.errors import OutOfMemory
from npu.model import Model
from tasks.board.room import NoRoomYet
from tests.stack import LIMIT
from tests.tasks.board.small_board import GIB, Board


def trial(board: Board, name: str) -> AbstractContextManager[None]:
    agent = board.agent
    return agent._loading.room_for_trial(board.models[name], agent._setup)


def test_a_trial_of_a_runtime_has_memory_of_its_own(board: Board) -> None:
    """Others are loaded beside it where there is room, and wait for its end where not: it is no model that could be unloaded."""
    board.agent._runtimes.changing = True
    with trial(board, "large"):
        assert board.agent._room.budget()[1] == int(2.5 * GIB)
        board.agent._loading.load_in_place(board.models["middle"])
        with pytest.raises(NoRoomYet, match="runtime is being tried"):
            board.agent._loading.load_in_place(board.models["huge"])
    board.agent._runtimes.changing = False
    assert board.agent._room.budget()[1] == 4 * GIB
    with pytest.raises(OutOfMemory, match="5120 MiB with its context"), trial(board, "huge"):
        raise AssertionError


def test_a_trial_waits_for_what_is_being_unloaded(board: Board) -> None:
    """Its memory is as good as free."""
    board.has("large", "middle")
    board.agent._workers.stop_behind("large", LIMIT, lambda: None)
    with trial(board, "large"):
        assert board.loaded() == {"middle"} and not board.agent._workers.leaving()


def test_what_is_gone_during_the_look_for_a_trial_is_free(board: Board, gone_at_look: Callable[[int], None]) -> None:
    """The same of a runtime that is tried."""
    board.has("middle", "large")
    gone_at_look(1)
    board.agent._workers.stop_behind("large", LIMIT, lambda: None)
    with trial(board, "large"):
        assert board.loaded() == {"middle"}


@pytest.mark.parametrize("single_model", [True])
def test_a_trial_is_the_one_model_of_a_small_board(board: Board) -> None:
    """While it lasts, and only where there is no other."""
    with trial(board, "tiny"), pytest.raises(NoRoomYet):
        board.agent._loading.load_in_place(board.models["small"])
    board.agent._loading.load_in_place(board.models["small"])
    with pytest.raises(OutOfMemory, match="one model at a time, and that is small"), trial(board, "tiny"):
        raise AssertionError


def test_jobs_wait_for_a_change_of_the_runtime(board: Board, tmp_path: Path) -> None:
    """Those of models that need none do not; who asks for nothing but a load hears of it."""
    npu = Model(id="small", engine="rkllm", folder=tmp_path)
    board.agent._runtimes.changing = True
    board.agent._loading.load_after_others(npu)
    with pytest.raises(NoRoomYet, match="runtime of this board is being changed"):
        board.agent._loading.load_after_others(npu, by_hand=True)
    board.agent._loading.load(board.models["tiny"])
    assert board.loaded() == {"tiny"}
    board.agent._runtimes.changing = False
    board.agent._loading.load(npu)
    assert board.loaded() == {"tiny", "small"}
