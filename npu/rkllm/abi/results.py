"""Turns the runtime's callback into neutral records, and lets nothing raised there reach C."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from ctypes import Structure, c_void_p, cast
from typing import Any

from npu.rkllm.abi.contract import Answer, OnResult, Perf, Result, Rows, State

log = logging.getLogger(__name__)

STATES: Mapping[int, State] = {int(state): state for state in State}
"""The states every family has."""


def rows(pointer: Any, count: int, width: int) -> Rows | None:
    """The rows at a `float *`; None where it is NULL or there is nothing."""
    if not pointer or count <= 0 or width <= 0:
        return None
    return Rows(cast(pointer, c_void_p).value or 0, count, width)


def hidden_rows(result: Structure) -> Rows | None:
    """The hidden states of an `RKLLMResult`."""
    layer = result.last_hidden_layer
    return rows(layer.hidden_states, layer.num_tokens, layer.embd_size)


def logit_rows(result: Structure) -> Rows | None:
    """The logits of an `RKLLMResult` since 1.2.0."""
    logits = result.logits
    return rows(logits.logits, logits.num_tokens, logits.vocab_size)


def perf_of(result: Structure, state: State) -> Perf | None:
    """The figures of an `RKLLMResult` since 1.2.1, which are only filled in with FINISH."""
    if state is not State.FINISH:
        return None
    perf = result.perf
    return Perf(
        prefill_ms=perf.prefill_time_ms,
        prefill_tokens=perf.prefill_tokens,
        generate_ms=perf.generate_time_ms,
        generate_tokens=perf.generate_tokens,
        memory_mb=perf.memory_usage_mb,
    )


def adaptor(
    read: Callable[[Structure, State], Result],
    on_result: OnResult,
    slots: int,
    answers: frozenset[Answer],
    states: Mapping[int, State] = STATES,
) -> Callable[[Any, int | None, int], int]:
    """What is wrapped into a family's C callback type. A state nobody knows is an error."""
    places = range(slots)

    def on_call(pointer: Any, run: int | None, number: int) -> int:
        found: tuple[Result, ...] = ()
        try:
            state = states.get(number, State.ERROR)
            if pointer and state is not State.ERROR:
                found = tuple([read(pointer[place], state) for place in places])
            answer = on_result(state, found, run or 0)
            return int(answer) if answer in answers else 0
        except BaseException as error:  # Nobody above could catch it: above is C.
            # Only its type: its message may hold a piece of someone's text.
            log.error("a result of the RKLLM runtime was lost: %s", type(error).__name__)
            return 0
        finally:
            for result in found:
                for lent in (result.hidden, result.logits):
                    if lent is not None:
                        lent.expire()

    return on_call
