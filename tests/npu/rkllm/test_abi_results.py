"""A callback becomes a neutral record, whatever the library left out, and nothing raised reaches C."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import pytest

from npu.rkllm.abi import Abi, Answer, Perf, Result, State
from tests.npu.rkllm.tables import ABIS, family_name

every_family = pytest.mark.parametrize("abi", ABIS, ids=family_name)


class Listener:
    """Remembers what it was told, and answers as it was made to."""

    def __init__(self, answer: Any = Answer.CONTINUE) -> None:
        self.told: list[tuple[State, tuple[Result, ...]]] = []
        self.answer = answer

    def __call__(self, state: State, results: tuple[Result, ...], _number: int) -> Answer:
        self.told.append((state, results))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


def floats(*values: float) -> Any:
    return (ctypes.c_float * len(values))(*values)


@every_family
def test_null_text_is_empty_text(abi: Any) -> None:
    """In every state, and with every pointer NULL."""
    listener = Listener()
    callback = abi.result_callback(listener, 1)
    for state in (State.NORMAL, State.WAITING, State.FINISH):
        callback(abi.RKLLMResult(text=None, token_id=7), None, state)
    assert [state for state, _ in listener.told] == [State.NORMAL, State.WAITING, State.FINISH]
    for state, (result,) in listener.told:
        assert (result.text, result.token, result.hidden, result.logits) == (b"", 7, None, None)
        assert (result.perf is not None) == (state is State.FINISH and abi.CAPABILITIES.perf)


@every_family
def test_half_a_character_is_passed_on_as_bytes(abi: Any) -> None:
    """Decoding is not the callback's work."""
    assert abi.read_result(abi.RKLLMResult(text=b"\xe4\xb8", token_id=-1), State.WAITING).text == b"\xe4\xb8"


@every_family
def test_a_null_result_and_an_error_carry_nothing(abi: Any) -> None:
    """What lies behind the pointer then is anybody's guess; so is an unknown state."""
    listener = Listener()
    callback = abi.result_callback(listener, 1)
    nothing, something = ctypes.POINTER(abi.RKLLMResult)(), abi.RKLLMResult(text=b"x", token_id=1)
    for pointer, state in ((nothing, 0), (nothing, 2), (something, 3), (something, 5), (something, -1)):
        callback(pointer, None, state)
    assert listener.told == [(State.NORMAL, ()), (State.FINISH, ())] + 3 * [(State.ERROR, ())]


def test_the_state_only_1_1_has_is_a_result() -> None:
    """Later families deliver hidden states as NORMAL; there, 4 is no state."""
    for abi in ABIS:
        listener = Listener()
        abi.result_callback(listener, 1)(abi.RKLLMResult(token_id=3), None, 4)  # type: ignore[attr-defined]
        assert listener.told[0][0] is (State.NORMAL if family_name(abi) == "1.1.0" else State.ERROR)


@every_family
def test_rows_are_copied_during_the_callback_and_refused_after_it(abi: Any) -> None:
    """Their memory is the library's again."""
    copies, kept = [], []

    def listen(_state: State, results: tuple[Result, ...], _number: int) -> Answer:
        hidden = results[0].hidden
        assert hidden is not None and (hidden.count, hidden.width) == (2, 3)
        copies.extend([[*hidden.copy()], [*hidden.last()], [*hidden.copy(0, 1)], [*hidden.copy(5)]])
        kept.append(hidden)
        return Answer.CONTINUE

    result = abi.RKLLMResult()
    result.last_hidden_layer = abi.RKLLMResultLastHiddenLayer(floats(1, 2, 3, 4, 5, 6), embd_size=3, num_tokens=2)
    abi.result_callback(listen, 1)(result, None, State.NORMAL)
    assert copies == [[1, 2, 3, 4, 5, 6], [4, 5, 6], [1, 2, 3], []]
    with pytest.raises(ValueError, match="went back"):
        kept[0].copy()


@every_family
def test_logits_are_read_where_there_are_any(abi: Any) -> None:
    """As rows, one for each token."""
    if not abi.CAPABILITIES.logits:
        assert not hasattr(abi, "RKLLMResultLogits")
        return
    result = abi.RKLLMResult(logits=abi.RKLLMResultLogits(floats(0.5, 1.5), vocab_size=2, num_tokens=1))
    logits = abi.read_result(result, State.NORMAL).logits
    assert (logits.count, logits.width, [*logits.last()]) == (1, 2, [0.5, 1.5])


@every_family
def test_figures_come_with_the_end_only(abi: Any) -> None:
    """Before it, the struct holds nothing that was meant."""
    if not abi.CAPABILITIES.perf:
        return
    result = abi.RKLLMResult(perf=abi.RKLLMPerfStat(12.5, 3, 250.0, 10, 900.0))
    assert abi.read_result(result, State.NORMAL).perf is None
    assert abi.read_result(result, State.FINISH).perf == Perf(12.5, 3, 250.0, 10, 900.0)


@every_family
def test_each_slot_has_its_result(abi: Any) -> None:
    """They lie side by side, and a slot that has ended says so by a negative token."""
    if not abi.CAPABILITIES.batches:
        return
    listener = Listener()
    results = (abi.RKLLMResult * 3)((b"a", 1), (None, -1), (b"c", 3))
    abi.result_callback(listener, 3)(results, None, State.NORMAL)
    assert [(result.text, result.token) for result in listener.told[0][1]] == [(b"a", 1), (b"", -1), (b"c", 3)]


@every_family
def test_only_answers_the_family_knows_reach_the_library(abi: Any) -> None:
    """A stray one would pause a run, or drop a buffer."""
    for answer in Answer:
        returned = abi.result_callback(Listener(answer), 1)(abi.RKLLMResult(), None, State.NORMAL)
        expected = answer if answer in abi.CAPABILITIES.answers else 0
        assert returned == (None if len(abi.CAPABILITIES.answers) == 1 else expected)


@every_family
@pytest.mark.parametrize("error", [ValueError("secret words"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_what_a_listener_raises_stops_before_c(
    abi: Abi, error: BaseException, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is logged by type, never with its message, which may quote an answer."""
    callback = abi.result_callback(Listener(error), 1)
    with caplog.at_level(logging.ERROR):
        assert not callback(abi.RKLLMResult(), None, State.NORMAL)  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == [
        f"a result of the RKLLM runtime was lost: {type(error).__name__}"
    ]
    assert "secret" not in caplog.text and capfd.readouterr().err == ""  # ctypes would have printed a traceback.
