"""One answer of the RKLLM runtime: prefilled in slices, sampled by the runtime or by us, counted and ended by us."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from npu.engine import End, Piece, Prompt, Sampling, Stats
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.engines.rkllm.logits import Ended, LogitsRuns
from npu.one_run import OneRun
from npu.rkllm.abi import NativeSampling, Result, Run, Tokens
from npu.rkllm.handle import Call, Take

if TYPE_CHECKING:
    from npu.matcher import Matcher


class RkllmGeneration(OneRun):
    """One run of the engine. See `npu.engine.Generation`."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: Prompt,
        sampling: Sampling,
        native: NativeSampling | None,
        on_prefill: Callable[[int], None] | None,
        matcher: Matcher | None = None,
    ) -> None:
        super().__init__()
        self._loaded = loaded
        self._matcher = matcher
        """Follows what the answer is held to."""
        self._prompt = prompt
        self._sampling = sampling
        self._native = native
        """What the runtime is told to sample by; None when we sample from its logits."""
        self._on_prefill = on_prefill or (lambda _: None)
        self._aborted = False
        self._call: Call | None = None
        self._lock = threading.Lock()
        self._said: list[int] = []
        self._prefilled = 0
        """Tokens of the prompt the runtime says it has worked through; what it reused is not among them."""
        self.counted = True
        """Whether it said so for every run of this generation."""
        self._skipped = 0
        """Tokens of the prompt that were in the cache, as far as we know by ourselves."""
        self._there = 0
        """The same for the next run, where slices come one after another."""
        self._unparked = 0
        """Tokens of the prompt that had been parked, and were loaded."""
        self._prefill_ms = 0.0
        self._decode_ms = 0.0
        self._memory_mb = 0.0

    def abort(self) -> None:
        """See `Generation.abort`. Inside a prefill it takes effect at the end of the slice."""
        with self._lock:
            self._aborted = True
            call = self._call
        if call is not None and self._end is None:
            call.stop()

    def _run(self) -> Iterator[Piece]:
        try:
            if not self._aborted:
                yield from self._by_runtime(self._native) if self._native is not None else self._by_us()
        finally:
            call = self._call
            if call is not None:  # nobody read it to its end
                call.stop()
                self._prefilled_by(call)
            self._finish()

    def _by_runtime(self, native: NativeSampling) -> Iterator[Piece]:
        """The runtime samples, and calls back with each token."""
        loaded, prompt = self._loaded, self._prompt
        can = loaded.family.CAPABILITIES
        loaded.cache.speak_with(prompt.adapter, prompt.owner, prompt.returns)
        history, at = loaded.cache.enter(prompt.tokens)
        self._unparked, self._prefill_ms = loaded.cache.loaded, loaded.cache.files_ms
        # Where the runtime counts what it reused as prefilled, only our own knowledge tells them apart.
        self._skipped = loaded.cache.begins(prompt.tokens) if loaded.counts_cached and not history else at
        self._there = self._skipped
        if history:
            at = self._prefill_history(prompt.tokens, at)
        else:
            self._prefill_slices(prompt.tokens)
        if history:
            loaded.cache.holds(())  # until it is through: nobody may read this to its end
        run = Run(
            inputs=[Tokens(prompt.tokens[at:])],
            keep_history=history,
            sampling=native if can.per_run_sampling else None,
            max_tokens=prompt.max_tokens if can.per_run_max_tokens else None,
        )
        begun = time.monotonic()
        # Where the runtime counts for itself it also ends by itself, and then tells its figures.
        call = self._start(run, prompt.max_tokens + 1 if can.per_run_max_tokens else prompt.max_tokens)
        if call is None:
            return
        ended, first = False, 0.0
        for result in call:
            assert isinstance(result, Result)
            if not first:
                first = time.monotonic()
                self._on_prefill(len(prompt.tokens))
            if ended or self._aborted:
                continue
            if result.token < 0 or result.token in loaded.vocabulary.end_tokens:  # negative: other slots go on
                ended = True
                call.stop()
            elif len(self._said) < prompt.max_tokens:
                yield self._say(result.token)
        self._count(call)
        now = time.monotonic()
        if call.perf is not None:
            self._prefill_ms += call.perf.prefill_ms
            self._decode_ms = call.perf.generate_ms
        else:
            self._prefill_ms += ((first or now) - begun) * 1000
            self._decode_ms = (now - first) * 1000 if first else 0.0
        loaded.cache.holds(prompt.tokens, self._said)
        if len(self._said) >= prompt.max_tokens:
            self._end = End.LENGTH
        elif not self._aborted and (ended or not call.stopped):  # stopped by neither: the engine was closed
            self._end = End.EOS

    def _by_us(self) -> Iterator[Piece]:
        """The runtime gives logits, one token at a time, and we sample."""
        from npu.sampler import Sampler  # numpy, for those who need it

        loaded, prompt = self._loaded, self._prompt
        sampling = self._sampling
        sampler = Sampler(sampling, len(loaded.vocabulary), prompt.tokens, loaded.vocabulary.end_tokens)
        runs, logits = self._logits_of_prompt()
        self._on_prefill(len(prompt.tokens))
        while logits is not None and not self._aborted:
            begun = time.monotonic()
            token = sampler.next(logits, self._matcher.allowed() if self._matcher is not None else None)
            if token in loaded.vocabulary.end_tokens:
                self._end = End.EOS
                return
            piece = self._say(token)
            if sampling.logprobs is not None:
                logprob, top = sampler.logprobs(logits, sampling.logprobs)
                piece = replace(piece, logprob=logprob, top=tuple(top))
            complete = self._matcher is not None and self._matcher.follow(token)
            yield piece
            if complete:
                self._end = End.EOS
                return
            if len(self._said) >= prompt.max_tokens:
                self._end = End.LENGTH
                return
            logits = runs.after(token)
            self._decode_ms += (time.monotonic() - begun) * 1000

    def _logits_of_prompt(self) -> tuple[LogitsRuns, memoryview[float] | None]:
        """Those after the prompt, None once aborted; and the runs that give those after it."""
        begun = time.monotonic()
        self._loaded.cache.speak_with(self._prompt.adapter, self._prompt.owner, self._prompt.returns)
        runs = LogitsRuns(self._loaded, self._prompt.tokens, self._run_through, self._on_prefill)
        self.counted = False
        try:
            return runs, runs.of_prompt()
        finally:
            self._skipped, self._unparked = runs.cached, self._loaded.cache.loaded
            self._prefill_ms = (time.monotonic() - begun) * 1000

    def _prefill_slices(self, tokens: Sequence[int]) -> None:
        """Prefill all but the last slice, where the runtime finds its way back to a prefix.

        A slice that ended inside of what is cached would cut off the rest of it.
        """
        cache = self._loaded.cache
        if not cache.reuse:
            return
        at = cache.begins(tokens)
        cache.holds(tokens[: cache.shared(tokens)])  # all that is sure of one that is left in mid slice
        for stop in self._loaded.slices(len(tokens), at):
            if not self._prefill(tokens[:stop], history=False):
                return
            cache.holds(tokens[:stop])
            self._there = stop
            self._on_prefill(stop)

    def _prefill_history(self, tokens: Sequence[int], at: int) -> int:
        """Prefill `tokens` from place `at` in slices, all but the last one; where to go on from.

        A runtime that keeps more than it was given is cleared, and everything is left to do.
        """
        cache = self._loaded.cache
        for stop in self._loaded.slices(len(tokens), at):
            if not self._prefill(tokens[at:stop], history=True):
                return at
            cache.holds(tokens[:stop])
            if not cache.is_exact():
                cache.clear()
                self._skipped = 0
                return cache.enter_history(tokens)
            at = stop
            self._on_prefill(stop)
        return at

    def _prefill(self, tokens: Sequence[int], history: bool) -> bool:
        """Work through `tokens` and drop the one token that is said then; False once aborted."""
        begun = time.monotonic()
        call = self._start(Run(inputs=[Tokens(tokens)], keep_history=history, max_tokens=self._one), 1)
        if call is None:
            return False
        through = self._prefilled_by(call)
        self._prefill_ms += (time.monotonic() - begun) * 1000
        return through

    def _prefilled_by(self, call: Call) -> bool:
        """Read a run to its end whose one token nobody wants; False when an abort came meanwhile."""
        for _ in call:
            pass
        self._count(call)
        return not self._aborted

    @property
    def _one(self) -> int | None:
        return 1 if self._loaded.family.CAPABILITIES.per_run_max_tokens else None

    def _run_through(self, run: Run, take: Take, *, pause: bool) -> Ended | None:
        """Run until the first callback; None when an abort came first."""
        call = self._start(run, 1, take, pause)
        if call is None:
            return None
        taken = list(call)
        self._ended(call)
        return call, taken

    def _start(self, run: Run, limit: int, take: Take = lambda results: results[0], pause: bool = False) -> Call | None:
        """Begin a run, unless an abort came first."""
        with self._lock:
            if self._aborted:
                return None
            run = replace(run, adapter=self._prompt.adapter)
            self._call = self._loaded.handle.start(run, limit=limit, take=take, pause=pause)
            return self._call

    def _count(self, call: Call) -> None:
        """A run has ended: what of the prompt it worked through and how much it said, where it tells."""
        self._ended(call)
        if call.paused:
            self._loaded.cache.clear()  # or the next run would go on from here
        if call.perf is None:
            self.counted = False
        else:
            told = call.perf.prefill_tokens
            prefilled = told - self._there if self._loaded.counts_cached and not call.run.keep_history else told
            self._prefilled += prefilled
            self._loaded.prefilled(prefilled, call.perf.prefill_ms)
            if not call.stopped:  # one that was is not heard to its end
                self._loaded.said(len(self._said), call.perf.generate_tokens)

    def _ended(self, call: Call) -> None:
        self._call = None
        if call.perf is not None:
            self._memory_mb = max(self._memory_mb, call.perf.memory_mb)

    def _say(self, token: int) -> Piece:
        self._said.append(token)
        return Piece(token, self._loaded.vocabulary.bytes_of(token))

    def _finish(self) -> None:
        if self._end is None:
            self._end = End.ABORTED
        length = len(self._prompt.tokens)
        cached = self._skipped
        if self.counted and self._prefilled:
            told = length - self._prefilled
            if self._unparked and self._loaded.cache.parking is not None:
                self._loaded.cache.parking.judge(self._unparked, told)
            cached = max(cached, told)
        self._stats = Stats(
            prompt_tokens=length,
            cached_tokens=max(0, min(cached, length - 1)),
            parked_tokens=max(0, min(self._unparked, cached, length - 1)),
            prefill_ms=self._prefill_ms,
            generated_tokens=len(self._said),
            decode_ms=self._decode_ms,
            memory_mb=self._memory_mb,
        )
