"""One answer to a message that the RKLLM runtime itself puts into the model's template and cuts into tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from npu.engine import End, Piece, Prompt, Stats, Turn
from npu.errors import ContextTooLong, EngineFailed
from npu.one_run import OneRun
from npu.rkllm.abi import NativeSampling, Perf, Result, Run, Text
from npu.rkllm.handle import Call, Handle

TEMPLATE_TOKENS = 512
"""More than any template adds to a message."""
SILENT = 8
"""Tokens without any text that no answer begins with: a character has four at most."""


class RkllmTextGeneration(OneRun):
    """One run of the engine. See `npu.engine.Generation`.

    The cache is cleared before it, so that what the runtime counts as prefilled is the prompt. Where it does not say how many
    tokens that has, `stats` tells 0.
    """

    def __init__(self, handle: Handle, context_length: int, prompt: Prompt, turn: Turn, native: NativeSampling) -> None:
        super().__init__()
        self._handle = handle
        self._context_length = context_length
        self._prompt = prompt
        self._turn = turn
        self._native = native
        self._aborted = False
        self._call: Call | None = None
        self._lock = threading.Lock()
        self._said = 0
        self._first = 0.0
        """When the first token came; 0 before."""

    def abort(self) -> None:
        """See `Generation.abort`. Inside a prefill it takes effect at its end."""
        with self._lock:
            self._aborted = True
            call = self._call
        if call is not None and self._end is None:
            call.stop()

    def _run(self) -> Iterator[Piece]:
        begun = time.monotonic()
        call: Call | None = None
        try:
            call = self._start()
            if call is None:
                return
            try:
                yield from self._tokens(call)
            except EngineFailed:
                if self._said or not self._may_be_too_long():
                    raise
                raise ContextTooLong(self._context_length, None, self._context_length, at_least=True) from None
            if self._said >= self._prompt.max_tokens:
                self._end = End.LENGTH
            elif not self._aborted and not call.stopped:  # or the engine was closed
                self._end = End.EOS
        finally:
            if self._call is not None:  # nobody read it to its end
                self._call.stop()
                for _ in self._call:
                    pass
            self._finish(call.perf if call is not None else None, begun)

    def _start(self) -> Call | None:
        """Begin the run, unless an abort came first."""
        prompt = self._prompt
        _forget(self._handle)
        can = self._handle.abi.CAPABILITIES
        # One token more than is wanted: only that tells a last token without text from the one that ends an answer.
        most = prompt.max_tokens + 1
        with self._lock:
            if self._aborted:
                return None
            run = Run(
                inputs=[Text(self._turn.text, thinking=self._turn.thinking)],
                sampling=self._native if can.per_run_sampling else None,
                max_tokens=most if can.per_run_max_tokens else None,
                adapter=prompt.adapter,
            )
            self._call = self._handle.start(run, limit=most, take=lambda results: results[0])
            return self._call

    def _tokens(self, call: Call) -> Iterator[Piece]:
        """What is part of the answer.

        The token that ends it may be told, and is one without text. So such a one is held until the next has come.
        """
        waiting: list[Piece] = []
        heard = False
        for result in call:
            assert isinstance(result, Result)
            heard = heard or bool(result.text)
            waiting.append(Piece(result.token, result.text))
            while waiting and (waiting[0].data or waiting[1:]):
                piece = waiting.pop(0)
                if self._said < self._prompt.max_tokens and not self._aborted:
                    self._first = self._first or time.monotonic()
                    self._said += 1
                    yield piece
        self._call = None
        if self._said >= SILENT and not heard:
            raise EngineFailed(
                f"The RKLLM runtime said {self._said} tokens and no text. Copy tokenizer.json from the model it was converted "
                "from into its folder: then the text is made of the tokens."
            )

    def _may_be_too_long(self) -> bool:
        """Whether the prompt may be what the runtime could not run, rather than the runtime being broken."""
        size = len(self._turn.text.encode()) + TEMPLATE_TOKENS  # no token is shorter than a byte
        return size >= self._context_length and _answers(self._handle)

    def _finish(self, perf: Perf | None, begun: float) -> None:
        if self._end is None:
            self._end = End.ABORTED
        now = time.monotonic()
        first = self._first or now
        self._stats = Stats(
            prompt_tokens=perf.prefill_tokens if perf is not None else 0,
            cached_tokens=0,
            prefill_ms=perf.prefill_ms if perf is not None else (first - begun) * 1000,
            generated_tokens=self._said,
            decode_ms=perf.generate_ms if perf is not None else (now - first) * 1000,
            memory_mb=perf.memory_mb if perf is not None else 0.0,
        )


def _forget(handle: Handle) -> None:
    """Clear the cache. Raises `EngineFailed` when the runtime does not."""
    if not handle.clear() or handle.cache_size() not in (None, 0):
        raise EngineFailed("The RKLLM runtime did not clear its cache. The model is loaded anew.")


def _answers(handle: Handle) -> bool:
    """Whether the runtime still does."""
    _forget(handle)
    try:
        list(handle.start(Run(inputs=[Text("Hi")]), limit=1))
    except EngineFailed:
        return False
    return True
