"""A model in the library with a callback that hides nothing: what it lends is seen as it is, and any answer gets through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from ctypes import CDLL
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from npu.rkllm.abi import Abi, Loaded, NativeSampling, Perf, Run, Settings, State, Tokens, bind, family_of
from npu.rkllm.acceptance.material import Material
from npu.rkllm.acceptance.question import Unanswered

GREEDY: Final = NativeSampling(top_k=1, repeat_penalty=1.0)
LAST_WORD = 0.5
"""Seconds in which a callback may still come after the run has returned."""
_SPEAKING = (State.NORMAL, State.WAITING)
_TERMINAL = (State.FINISH, State.ERROR)


@dataclass(frozen=True, slots=True)
class Heard:
    """One callback."""

    state: int
    thread: int
    at: float
    """By the monotonic clock."""
    texts: tuple[bytes | None, ...] = ()
    """For each slot; None where the library gave NULL. Nothing is read with ERROR."""
    tokens: tuple[int, ...] = ()
    rows: int = 0
    """Rows of logits."""
    perf: Perf | None = None


@dataclass(slots=True)
class Outcome:
    """One run: what the library returned, and all it said."""

    began: float
    heard: list[Heard] = field(default_factory=list)
    status: int = 0
    ended: float = 0.0

    @property
    def spoken(self) -> list[Heard]:
        """The callbacks that carry something: a token, or rows."""
        return [heard for heard in self.heard if heard.state in _SPEAKING]

    @property
    def tokens(self) -> list[int]:
        """What the first slot said, the token that ends an answer included where it is told."""
        return [heard.tokens[0] for heard in self.spoken if heard.tokens[0] >= 0]

    @property
    def terminal(self) -> list[Heard]:
        """FINISH or ERROR, if they came."""
        return [heard for heard in self.heard if heard.state in _TERMINAL]

    @property
    def perf(self) -> Perf | None:
        """The library's own figures, where it gave any."""
        return next((heard.perf for heard in self.heard if heard.perf is not None), None)

    @property
    def prefill_ms(self) -> float:
        """By the library's clock, else by ours: until the first token."""
        if self.perf is not None:
            return self.perf.prefill_ms
        if not self.spoken:
            raise Unanswered("the run said nothing")
        return (self.spoken[0].at - self.began) * 1000


def _go_on(heard: Heard) -> int:
    return 0


class Listener:
    """A loaded model."""

    def __init__(
        self, material: Material, *, max_tokens: int, context_length: int | None = None, slots: int = 1
    ) -> None:
        """Raises `Unanswered` when the model does not load."""
        self.abi: Final[Abi] = family_of(material.runtime)
        self.can: Final = self.abi.CAPABILITIES
        self.lib: Final = CDLL(material.library)
        bind(self.lib, self.abi)
        self._reply: Callable[[Heard], int] = _go_on
        self._outcome = Outcome(time.monotonic())
        self._terminal = threading.Event()
        self._broken: BaseException | None = None
        self.slots: Final = slots
        settings = Settings(
            model=Path(material.weights),
            context_length=min(context_length or material.context_length, material.context_length),
            max_tokens=max_tokens,
            sampling=GREEDY,
            memory_domain=material.memory_domain,
            embed_flash=material.embed_flash if self.can.embed_flash else None,
            cpus=material.cpus if self.can.cpu_choice else (),
            slots=slots,
        )
        # Held here as well: a question may take it out of the struct that holds it.
        self._callback = self.abi.LLMResultCallback(self._on_call)
        self.loaded: Loaded = self.abi.init_with(self.lib, settings, self._callback)
        if self.loaded.status != 0:
            raise Unanswered(f"the model did not load: rkllm_init returned {self.loaded.status}")

    def close(self) -> None:
        """Free the model. Who asks one question leaves that to the end of its process, lest a crash in it be the answer."""
        self.lib.rkllm_destroy(self.loaded.handle)

    def run(self, *inputs: Sequence[int], reply: Callable[[Heard], int] = _go_on, **options: Any) -> Outcome:
        """Run once on this thread; `reply` is what the callback returns to each result. Raises what `reply` raised."""
        self._reply, self._broken = reply, None
        self._terminal.clear()
        outcome = self._outcome = Outcome(time.monotonic())
        outcome.status = self.abi.infer(self.loaded, Run(inputs=[Tokens(ids) for ids in inputs], **options))
        outcome.ended = time.monotonic()
        self._terminal.wait(LAST_WORD if outcome.status == 0 else 0)
        if self._broken is not None:
            raise self._broken
        return outcome

    def abort(self) -> int:
        """From any thread."""
        status: int = self.lib.rkllm_abort(self.loaded.handle)
        return status

    def clear(self) -> None:
        """Forget all of the cache, where the family can. Raises `Unanswered` when it does not."""
        if self.abi.clear_cache(self.loaded) != 0:
            raise Unanswered("the cache could not be cleared")

    def cached(self) -> int | None:
        """Tokens in the cache of the first slot; None where the library does not tell."""
        sizes = self.abi.cache_sizes(self.loaded)
        return sizes[0] if sizes else None

    def _on_call(self, pointer: Any, _: int | None, number: int) -> int:
        try:
            heard = self._read(pointer, number)
            self._outcome.heard.append(heard)
            if number in _TERMINAL:
                self._terminal.set()
            return self._reply(heard)
        except BaseException as error:  # Nothing may be raised into C.
            self._broken = error
            return 0

    def _read(self, pointer: Any, number: int) -> Heard:
        at, thread = time.monotonic(), threading.get_ident()
        if not pointer or number == State.ERROR or number not in set(State):
            return Heard(number, thread, at)
        slots = [pointer[slot] for slot in range(self.slots)]
        first = self.abi.read_result(slots[0], State(number))
        return Heard(
            *(number, thread, at),
            texts=tuple(slot.text for slot in slots),
            tokens=tuple(slot.token_id for slot in slots),
            rows=first.logits.count if first.logits is not None else 0,
            perf=first.perf,
        )
