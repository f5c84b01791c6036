"""The vector of one text, from the last hidden layer of the RKLLM runtime."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from npu.embedding import mean
from npu.engine import Pooling, Stats
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.errors import EngineFailed, PromptRefused
from npu.rkllm.abi import Mode, Result, Run, Tokens
from npu.rkllm.handle import Call

CALLBACK_BYTES = 8 << 20
"""The most that one callback may carry: the runtime holds all rows of a run in memory at once."""


class RkllmEmbedding:
    """One text on its way to a vector. See `npu.engine.Reading`.

    The runtime gives a row for each token it works through, and none for those it finds in its cache; and what it keeps of
    earlier rows makes every later run slower. So the cache is empty before and after each text.
    """

    def __init__(self, loaded: LoadedModel, tokens: Sequence[int], pooling: Pooling) -> None:
        self._loaded = loaded
        self._tokens = tokens
        self._pooling = pooling
        others = loaded.handle.loaded.slots - 1  # each has a row of its own
        self._rows = (
            CALLBACK_BYTES // (4 * loaded.embedding_length) - others if loaded.embedding_length else len(tokens)
        )
        """How many tokens may be read at once."""
        self._call: Call | None = None
        self._aborted = False
        self._lock = threading.Lock()
        self._prefill_ms = 0.0
        self._stats: Stats | None = None
        can = loaded.family.CAPABILITIES
        if len(tokens) <= self._rows:
            return
        if pooling is Pooling.MEAN:
            raise self._refuse("A mean is over all tokens of a text at once")
        if not (can.keep_history and can.cache_size):
            raise self._refuse(f"{loaded.version} cannot be relied on to read a text in parts")

    def abort(self) -> None:
        """See `Reading.abort`. Inside a part of the text it takes effect at its end."""
        with self._lock:
            self._aborted = True
            call = self._call
        if call is not None:
            call.stop()

    def result(self) -> Sequence[float] | None:
        """The vector, or None once aborted."""
        cache = self._loaded.cache
        cache.clear()
        try:
            vector: Sequence[float] | None = None
            for part, row in self._parts():
                if row is None:
                    return None
                vector = row
                if len(self._tokens) > self._rows:
                    cache.grew(part)
            return vector
        finally:
            self._stats = Stats(len(self._tokens), 0, self._prefill_ms, 0, 0.0)
            cache.clear()

    @property
    def stats(self) -> Stats:
        """What it cost. Raises `RuntimeError` before `result` has returned."""
        if self._stats is None:
            raise RuntimeError("The text has not been read.")
        return self._stats

    def _parts(self) -> Iterator[tuple[Sequence[int], Sequence[float] | None]]:
        """Each part of the text, and what its rows come to; None once aborted."""
        for at in range(0, len(self._tokens), self._rows):
            part = self._tokens[at : at + self._rows]
            yield part, self._read(part)

    def _read(self, part: Sequence[int]) -> Sequence[float] | None:
        run = Run(inputs=[Tokens(part)], mode=Mode.HIDDEN, keep_history=len(self._tokens) > self._rows)
        begun = time.monotonic()
        with self._lock:
            if self._aborted:
                return None
            call = self._call = self._loaded.handle.start(run, take=self._take)
        try:
            found = list(call)
        finally:
            with self._lock:
                self._call = None
        ours = (time.monotonic() - begun) * 1000
        self._prefill_ms += call.perf.prefill_ms if call.perf is not None else ours
        if self._aborted:
            return None
        if len(found) != 1 or not isinstance(found[0], _Rows) or found[0].count != len(part):
            raise EngineFailed(
                f"The RKLLM runtime was to give the last hidden layer of {len(part)} tokens, and gave something else. "
                "The model is loaded anew."
            )
        rows = found[0]
        return mean(rows.numbers, rows.width) if self._pooling is Pooling.MEAN else rows.numbers.tolist()

    def _take(self, results: tuple[Result, ...]) -> object:
        rows = results[0].hidden
        if rows is None:
            return None
        numbers = rows.copy() if self._pooling is Pooling.MEAN else rows.last()
        return _Rows(numbers, rows.count, rows.width)

    def _refuse(self, why: str) -> PromptRefused:
        return PromptRefused(
            f"The text has {len(self._tokens)} tokens, and this model can embed {self._rows} at most. {why}, and the "
            f"rows of that many come to {CALLBACK_BYTES >> 20} MB. Split the text."
        )


class _Rows:
    """What was copied of the rows, and how many there were."""

    __slots__ = ("count", "numbers", "width")

    def __init__(self, numbers: memoryview[float], count: int, width: int) -> None:
        self.numbers = numbers
        self.count = count
        self.width = width
