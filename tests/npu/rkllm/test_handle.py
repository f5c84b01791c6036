"""A handle keeps its runs apart, whatever the library does late."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from npu.errors import EngineFailed
from npu.rkllm import handle as handles
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
    third = handle.start(Run(inputs=[Tokens([72, 73])]), limit=12)
    heard = iter(third)
    next(heard)  # it runs
    first.stop()
    waiting.stop()
    assert 1 + len(list(heard)) == 12
    handle.close()
    handle.close()


@pytest.mark.parametrize("moment", ["while it begins", "before its turn"])
def test_a_run_that_a_close_comes_before_is_no_answer(handle: Handle, moment: str) -> None:
    """Nobody waits for it for ever, nor does the close wait for it."""
    failed: list[EngineFailed] = []

    def begin() -> None:
        try:
            call = handle.start(Run(inputs=[Tokens([70])]), limit=1000)
            if moment == "before its turn":
                before, call = call, handle.start(Run(inputs=[Tokens([70])]), limit=1000)
                next(iter(before))
                handle.close()
            list(call)
        except EngineFailed as error:
            failed.append(error)

    if moment == "while it begins":
        handle._numbers = (handle.close() or number for number in count(1))  # type: ignore[assignment, func-returns-value]
    runner = threading.Thread(target=begin, daemon=True)
    runner.start()
    runner.join(30)
    assert failed
    handle.close()


def test_a_run_that_never_says_it_has_finished_is_no_answer(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it was stopped, after which the runtime may say nothing."""
    monkeypatch.setattr(handles, "LAST_WORD", 0.01)

    def mute(_: object, run: Run) -> int:
        handle._on_result(State.NORMAL, (Result(text=b"x", token=99),), run.number)
        return 0

    monkeypatch.setattr(handle, "abi", SimpleNamespace(infer=mute, CAPABILITIES=handle.abi.CAPABILITIES))
    with pytest.raises(EngineFailed, match="never said that it had finished"):
        list(handle.start(Run(inputs=[Tokens([70])]), limit=500))
    assert len(list(handle.start(Run(inputs=[Tokens([70])]), limit=1))) == 1
    handle.close()
