"""A handle keeps its runs apart, whatever the library does late."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.rkllm.abi import Answer, Result, Run, Settings, State, Tokens
from npu.rkllm.handle import Handle
from npu.rkllm.library import identify
from npu.rkllm.loading import load
from npu.simulator import Profile, SimulatedModel, build, write_model
from tests.simulators import SIMULATORS


@pytest.fixture
def handle(tmp_path: Path) -> Handle:
    weights = write_model(tmp_path / "model", SimulatedModel(profile=Profile(decode_tps=200)))
    settings = Settings(model=weights, context_length=1024, max_tokens=1024)
    return load(identify(build("1.2.3", SIMULATORS), "1.2.3"), settings)[0]


def test_a_late_word_of_an_earlier_run_is_not_the_next_ones(handle: Handle) -> None:
    """It bears the number of its own run."""
    first = handle.start(Run(inputs=[Tokens([70, 71])]), limit=2)
    assert len(list(first)) == 2
    second = handle.start(Run(inputs=[Tokens([72, 73])]), limit=3)
    heard = iter(second)
    kept = [next(heard)]
    late = Result(text=b"x", token=99)
    assert handle._on_result(State.NORMAL, (late,), first.run.number) is Answer.CONTINUE
    assert handle._on_result(State.ERROR, (), first.run.number) is Answer.CONTINUE
    kept += heard
    assert len(kept) == 3
    assert (late,) not in kept
    handle.close()


def test_an_abort_from_outside_touches_its_own_run_only(handle: Handle) -> None:
    """Before it began, it does not begin; after its end, the next one is left alone."""
    first = handle.start(Run(inputs=[Tokens([70])]), limit=500)
    waiting = handle.start(Run(inputs=[Tokens([71])]), limit=2)
    waiting.stop()
    first.stop()
    assert len(list(first)) < 500
    assert list(waiting) == []
    third = handle.start(Run(inputs=[Tokens([72, 73])]), limit=2)
    first.stop()
    waiting.stop()
    assert len(list(third)) == 2
    handle.close()
    handle.close()
