"""What the echo makes of a text it only reads: a vector, alike for texts that are alike letter by letter, and a score."""

from __future__ import annotations

import math
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from npu.engine import Stats

EMBEDDING_LENGTH = 64
_WINDOW = 3
"""Bytes that are looked at together."""


Outcome = TypeVar("Outcome")


class EchoReading(ABC, Generic[Outcome]):
    """One text that is read, at the pace of the manifest. See `npu.engine.Reading`."""

    def __init__(self, tokens: Sequence[int], tokens_per_second: float) -> None:
        self._tokens = tokens
        self._seconds = len(tokens) / tokens_per_second if tokens_per_second else 0.0
        self._aborted = threading.Event()
        self._stats: Stats | None = None

    def abort(self) -> None:
        """Wakes it wherever it waits."""
        self._aborted.set()

    def result(self) -> Outcome | None:
        """What comes of it, or None once aborted."""
        begun = time.monotonic()
        aborted = self._aborted.wait(self._seconds) if self._seconds else self._aborted.is_set()
        outcome = None if aborted else self._outcome(self._tokens)
        self._stats = Stats(len(self._tokens), 0, (time.monotonic() - begun) * 1000, 0, 0.0)
        return outcome

    @abstractmethod
    def _outcome(self, tokens: Sequence[int]) -> Outcome: ...

    @property
    def stats(self) -> Stats:
        """What it cost. Raises `RuntimeError` before `result` has returned."""
        if self._stats is None:
            raise RuntimeError("the text has not been read")
        return self._stats


class EchoEmbedding(EchoReading[Sequence[float]]):
    """A vector."""

    def _outcome(self, tokens: Sequence[int]) -> Sequence[float]:
        return embedding(tokens)


class EchoScore(EchoReading[float]):
    """How much what stands before the first blank line is like what stands behind it: query and document."""

    def _outcome(self, tokens: Sequence[int]) -> float:
        break_ = next((at for at in range(len(tokens)) if tokens[at : at + 2] == [10, 10]), len(tokens))
        first, second = embedding(tokens[:break_]), embedding(tokens[break_:])
        return sum(a * b for a, b in zip(first, second, strict=True)) / (math.hypot(*first) * math.hypot(*second))


def embedding(tokens: Sequence[int]) -> list[float]:
    """Each window of neighbours adds to one number, which its checksum names; never zero as a whole."""
    vector = [0.0] * EMBEDDING_LENGTH
    vector[0] = 1.0
    for at in range(max(1, len(tokens) - _WINDOW + 1)):
        window = b"".join(token.to_bytes(2, "little") for token in tokens[at : at + _WINDOW])
        vector[zlib.crc32(window) % EMBEDDING_LENGTH] += 1.0
    return vector
