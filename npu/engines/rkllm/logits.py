"""The logits after a prompt, and after each token it goes on with, one token at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from npu.engines.rkllm.cache import Next
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.errors import EngineFailed
from npu.rkllm.abi import Mode, Result, Run, Tokens
from npu.rkllm.handle import Call, Take

ROWS = 4
"""Tokens whose logits are asked for at once, at most: a row of 262,144 is 1 MB."""


Ended = tuple[Call, list[object]]
"""A run that has ended, and what was taken of it."""


class RunThrough(Protocol):
    """Runs once and waits for the end; None when an abort came first."""

    def __call__(self, run: Run, take: Take, *, pause: bool) -> Ended | None: ...


class LogitsRuns:
    """The runs of one generation that we sample.

    The cache must hold what we sampled and nothing else, though the runtime samples, too, and hears an abort some tokens
    late. So each run is paused, where the runtime can be, and what comes next is sent as the runtime takes it after a pause
    (`Cache.after_pause`): alone, or behind all that was before. Where it cannot be paused but compares prompts, all that
    was before is sent as well, and what it said for itself falls away. Where it can do neither, history is kept, which is
    right as long as an abort is heard at once, and is found out where it is not.
    """

    def __init__(
        self, loaded: LoadedModel, prompt: Sequence[int], run: RunThrough, on_prefill: Callable[[int], None]
    ) -> None:
        self._loaded = loaded
        self._cache = cache = loaded.cache
        self._tokens = [*prompt]
        self._run_through = run
        self._on_prefill = on_prefill
        self._tells_size = loaded.family.CAPABILITIES.cache_size
        after = cache.after_pause()
        self._appends = after is Next.APPENDED
        self._pauses = self._appends or (after is Next.COMPARED and bool(cache.reuse))
        self._history = not self._pauses and not (cache.reuse and not self._tells_size)
        self._at = 0
        """Tokens in the cache."""
        self.cached = 0
        """Tokens of the prompt that had been there before."""

    def of_prompt(self) -> memoryview[float] | None:
        """The logits after the prompt; None once aborted. Raises `EngineFailed`."""
        tokens = self._tokens
        self._at = self._enter()
        self.cached = max(self._at, self._cache.begins(tokens) if self._pauses and self._cache.reuse else 0)
        if not self._read(len(tokens) - 1):
            return None
        # What is left, or everything, where a run that generates leaves more in the cache than it was given.
        while len(tokens) - self._at > ROWS:
            if self._logits(self._at + ROWS) is None:
                return None
            self._on_prefill(self._at)
        return self._logits(len(tokens))

    def after(self, token: int) -> memoryview[float] | None:
        """The logits after one more token; None once aborted. Raises `EngineFailed`."""
        self._tokens.append(token)
        return self._logits(len(self._tokens))

    def _enter(self) -> int:
        return self._cache.enter_history(self._tokens) if self._history else self._cache.enter_pausing(self._tokens)

    def _read(self, before: int) -> bool:
        """Read the prompt up to `before` in slices, by runs that say a token nobody wants; False once aborted.

        Where that leaves anything else in the cache than it should, everything is left to do.
        """
        alone = self._history or self._appends
        if (alone and not self._tells_size) or before - self._at < (ROWS if self._tells_size else 1):
            return True
        there = max(self._at, min(self.cached, before - 1))
        for stop in (*self._loaded.slices(before, there), before):
            begun, at = time.monotonic(), max(self._at, there)
            ended = self._run(stop, Mode.GENERATE)
            if ended is None:
                return False
            if alone and not (self._cache.is_exact() and (self._history or self._cache.appends or self._cache.reuse)):
                self._cache.clear()
                self._at = self.cached = self._enter()
                return True
            if self._pauses:
                self._loaded.prefilled(stop - at, (time.monotonic() - begun) * 1000)
            self._on_prefill(stop)
        return True

    def _logits(self, stop: int) -> memoryview[float] | None:
        """Read on to before `stop`, of which few tokens are left; the logits after the last. None once aborted."""
        taken = self._run(stop, Mode.LOGITS)
        if taken is None:
            return None
        if not taken or taken[0] is None:
            raise EngineFailed("The RKLLM runtime gave no logits when it was asked for them.")
        if self._tells_size:
            self._cache.check("Set `host_sampling = 0` in the model's manifest.")
        logits = taken[0]
        assert isinstance(logits, memoryview)
        # Models are padded to round sizes; what lies past the tokenizer's last token means nothing.
        return logits[: len(self._loaded.vocabulary)]

    def _run(self, stop: int, mode: Mode) -> list[object] | None:
        """Have the cache hold the tokens before `stop`; what was taken, or None once aborted."""
        cache = self._cache
        only_new = self._history or cache.appends
        can = self._loaded.family.CAPABILITIES
        run = Run(
            inputs=[Tokens(self._tokens[self._at if only_new else 0 : stop])],
            mode=mode,
            keep_history=self._history,
            max_tokens=1 if mode is Mode.GENERATE and can.per_run_max_tokens else None,
        )
        cache.holds(self._tokens[:stop])
        ended = self._run_through(run, _last_logits, pause=self._pauses)
        if ended is None:
            return None
        call, taken = ended
        if not self._history:
            cache.ended(call.paused, call.stopped)
        if call.stopped and not taken:
            return None
        self._at = stop
        return taken


def _last_logits(results: tuple[Result, ...]) -> memoryview[float] | None:
    rows = results[0].logits
    return rows.last() if rows is not None else None
