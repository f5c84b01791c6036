"""An answer of llama.cpp that goes on where it broke off, in the words it would have had.

llama.cpp rounds otherwise when it reads tokens in one go than when it says them one by one, and where two words are about as
likely it then goes on with the other one. At temperature 0 the beginning is therefore said once more instead of read.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from npu.engine import End, Piece, Prompt, Stats
from npu.engines.llamacpp.generation import LlamaCppGeneration
from npu.one_run import OneRun


class LlamaCppReplay(OneRun):
    """One run behind the beginning of an answer, iterated once.

    A token that the model does not say again was put in its mouth, as what ends a thought is. It is read by itself, and the
    model goes on behind it.
    """

    def __init__(
        self,
        behind: Callable[[int], LlamaCppGeneration],
        prompt: Prompt,
        known: int,
        on_prefill: Callable[[int], None] | None,
    ) -> None:
        """`behind` prepares a run behind so many tokens of the prompt. The engine remembers having said the first `known`."""
        super().__init__()
        self._behind = behind
        self._tokens = list(prompt.tokens)
        self._done = known
        """Tokens of the prompt that the engine has read or said."""
        self._said: list[int] = []
        self._on_prefill = on_prefill
        self._lock = threading.Lock()
        self._current: LlamaCppGeneration | None = None
        self._aborted = False
        self._cached: int | None = None
        self._parked = 0
        self._memory_mb = 0.0

    @property
    def tokens(self) -> list[int]:
        """What the engine has read and said, one by one, of this conversation."""
        return self._tokens[: self._done] + self._said

    def abort(self) -> None:
        """See `npu.engine.Generation.abort`."""
        with self._lock:
            self._aborted = True
            if self._current is not None:
                self._current.abort()

    def _run(self) -> Iterator[Piece]:
        begin = time.monotonic()
        caught_up: float | None = None
        end: End | None = None
        try:
            while end is None:
                run = self._next()
                pieces = iter(run)
                if self._says_again(pieces):
                    caught_up = time.monotonic()
                    for piece in pieces:
                        self._said.append(piece.token)
                        yield piece
                    end = run.end
                else:
                    run.abort()
                    deque(pieces, maxlen=0)
                    if self._aborted:
                        end = End.ABORTED
                    else:
                        self._count()
                if self._cached is None:
                    self._cached, self._parked = run.stats.cached_tokens, run.stats.parked_tokens
                self._memory_mb = run.stats.memory_mb
        except GeneratorExit:  # Nobody iterates to the end.
            end = End.ABORTED
            raise
        finally:
            now = time.monotonic()
            read = caught_up or now
            self._end = end
            self._stats = Stats(
                prompt_tokens=len(self._tokens),
                cached_tokens=self._cached or 0,
                prefill_ms=(read - begin) * 1000,
                generated_tokens=len(self._said),
                decode_ms=(now - read) * 1000,
                memory_mb=self._memory_mb,
                parked_tokens=self._parked,
            )

    def _next(self) -> LlamaCppGeneration:
        run = self._behind(self._done)
        with self._lock:
            self._current = run
            if self._aborted:
                run.abort()
        return run

    def _says_again(self, pieces: Iterator[Piece]) -> bool:
        """Whether the model says all that is left of the beginning; it is asked no further where it does not."""
        while self._done < len(self._tokens):
            piece = next(pieces, None)
            if piece is None or piece.token != self._tokens[self._done]:
                return False
            self._count()
        return True

    def _count(self) -> None:
        self._done += 1
        if self._on_prefill is not None:
            self._on_prefill(self._done)
