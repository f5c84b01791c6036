"""Several answers of the RKLLM runtime at once: one run whose slots advance in lock-step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from npu.engine import End, Piece, Prompt, Stats
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.errors import EngineFailed
from npu.one_run import OneRun
from npu.rkllm.abi import NativeSampling, Result, Run, Tokens
from npu.rkllm.handle import Call


class RkllmTogether:
    """One run and its slots. It begins with the first of them that is iterated.

    Whichever slot is iterated hands out to the others what each callback says of them, so they may be iterated one after
    another or on threads of their own. The runtime can end them only together: a slot that has ended goes on saying what
    nobody hears until the last one has.
    """

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Prompt], native: NativeSampling) -> None:
        self._loaded = loaded
        self._native = native
        self.slots = tuple(RkllmSlot(self, loaded, prompt) for prompt in prompts)
        self._lock = threading.Lock()
        self._call: Call | None = None
        self._heard: Iterator[object] | None = None
        self._begun_at = 0.0
        self._over = False
        self._failure: EngineFailed | None = None

    def stop_if_idle(self) -> None:
        """End the run once nobody waits for any of its slots. From any thread."""
        call = self._call
        if call is not None and all(slot.has_ended for slot in self.slots):
            call.stop()

    def advance(self, waiting: RkllmSlot) -> None:
        """Hand out what the next callbacks say, until one says something of a slot that waits, or it is over."""
        with self._lock:
            while not (waiting.has_news or self._over):
                self._step()
            if self._failure is not None and not waiting.has_news:
                raise self._failure

    def settle(self) -> None:
        """Wait for the end of the run, where no slot waits for anything else."""
        if self._call is not None and all(slot.has_ended for slot in self.slots):
            with self._lock:
                while not self._over:
                    self._step()

    def _step(self) -> None:
        if self._heard is None:
            self._heard = self._begin()
        try:
            results = next(self._heard, None)
        except EngineFailed as error:
            self._failure, self._over = error, True
            return
        if results is None:
            self._end()
            return
        assert isinstance(results, tuple)
        now = (time.monotonic() - self._begun_at) * 1000
        for slot, result in zip(self.slots, results, strict=False):
            slot.hear(result, now)
        self.stop_if_idle()

    def _begin(self) -> Iterator[object]:
        loaded, can = self._loaded, self._loaded.family.CAPABILITIES
        prompts = [slot.prompt for slot in self.slots]
        adapter = prompts[0].adapter
        loaded.cache.speak_with(adapter)
        for place, slot in enumerate(self.slots):
            slot.cached = loaded.cache.shared(slot.prompt.tokens, place) if loaded.cache.reuse else 0
        loaded.cache.enter(())
        for place, prompt in enumerate(prompts):
            loaded.cache.holds(prompt.tokens, slot=place)
        longest = max(prompt.max_tokens for prompt in prompts)
        run = Run(
            inputs=[Tokens(prompt.tokens) for prompt in prompts],
            sampling=self._native if can.per_run_sampling else None,
            max_tokens=longest if can.per_run_max_tokens else None,
            adapter=adapter,
        )
        self._begun_at = time.monotonic()
        self._call = loaded.handle.start(run, limit=longest)
        self.stop_if_idle()  # for an abort that found no run yet
        return iter(self._call)

    def _end(self) -> None:
        self._over = True
        stopped = self._call is not None and self._call.stopped
        for place, slot in enumerate(self.slots):
            slot.over(stopped)
            self._loaded.cache.holds(slot.prompt.tokens, slot.said, slot=place)
        read = sum(len(slot.prompt.tokens) - slot.cached for slot in self.slots)
        self._loaded.prefilled(read, max(slot.stats.prefill_ms for slot in self.slots))


class RkllmSlot(OneRun):
    """One answer of several. See `npu.engine.Generation`."""

    def __init__(self, together: RkllmTogether, loaded: LoadedModel, prompt: Prompt) -> None:
        super().__init__()
        self.prompt = prompt
        self.said: list[int] = []
        self.cached = 0
        """Tokens of the prompt that were in the slot's cache, as far as we know."""
        self._together = together
        self._loaded = loaded
        self._pieces: deque[Piece] = deque()
        self._first_ms = 0.0
        self._last_ms = 0.0
        self._handed = 0

    def abort(self) -> None:
        """See `Generation.abort`. The others go on; the run itself ends with the last of them."""
        self._end = self._end or End.ABORTED
        self._together.stop_if_idle()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be heard."""
        return self._end is not None

    @property
    def has_news(self) -> bool:
        """Whether somebody who waits can go on."""
        return bool(self._pieces) or self.has_ended

    @property
    def stats(self) -> Stats:
        """What it cost, by our clock: the runtime tells its figures when the last slot has ended. Raises `RuntimeError` before
        this one has."""
        if self._end is None:
            raise RuntimeError("The generation has not ended yet.")
        return Stats(
            prompt_tokens=len(self.prompt.tokens),
            cached_tokens=self.cached,
            prefill_ms=self._first_ms,
            generated_tokens=self._handed,
            decode_ms=self._last_ms - self._first_ms,
        )

    def hear(self, result: Result, at_ms: float) -> None:
        """What one callback says of this slot."""
        if self.has_ended:
            return
        self._last_ms = at_ms
        self._first_ms = self._first_ms or at_ms
        vocabulary = self._loaded.vocabulary
        if result.token < 0 or result.token in vocabulary.end_tokens:
            self._end = End.EOS
            return
        self.said.append(result.token)
        self._pieces.append(Piece(result.token, vocabulary.bytes_of(result.token)))
        if len(self.said) >= self.prompt.max_tokens:
            self._end = End.LENGTH

    def over(self, stopped: bool) -> None:
        """The run has ended; `stopped`: not by itself, as when the engine is closed."""
        self._end = self._end or (End.ABORTED if stopped else End.EOS)

    def _run(self) -> Iterator[Piece]:
        try:
            while not self._is_through():
                self._together.advance(self)
                while self._pieces and not self._is_through():
                    self._handed += 1
                    yield self._pieces.popleft()
        finally:
            self.abort()  # which ends a slot that nobody reads to its end
            self._together.settle()

    def _is_through(self) -> bool:
        return self._end is End.ABORTED or (self._end is not None and not self._pieces)
