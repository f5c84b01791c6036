"""Pieces of bytes made into visible text: characters put together, stop sequences cut off."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopFinder:
    """Visible text up to the first stop sequence.

    Nothing of a stop sequence becomes visible, not even its beginning: what might become one is held back until it is
    decided.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [sequence for sequence in stop if sequence]
        self._held = ""
        self.stopped_by: str | None = None
        """The stop sequence that ended the text."""

    def feed(self, text: str) -> str:
        """What is certain to be visible with `text` behind what was fed. Nothing after a stop sequence was met."""
        if not self._stop:
            return text
        if self.stopped_by is not None:
            return ""
        held = self._held + text
        met = min(
            ((at + len(sequence), at, sequence) for sequence in self._stop if (at := held.find(sequence)) >= 0),
            default=None,
        )
        if met is not None:
            # The one that is whole first wins, else it would depend on how the text was cut into tokens; of two that end
            # at one place, the longer.
            _, at, self.stopped_by = met
            self._held = ""
            return held[:at]
        keep = max(overlap(held, sequence) for sequence in self._stop)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back, now that nothing follows that could belong to it. More may be fed afterwards."""
        held, self._held = self._held, ""
        return held


class TextParser:
    """The visible text of one answer, fed token by token.

    A character split over tokens appears once it is whole; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = StopFinder(stop) if any(stop) else None

    @property
    def stopped_by(self) -> str | None:
        """The stop sequence that ended the answer."""
        return self._stop.stopped_by if self._stop is not None else None

    def feed(self, data: bytes) -> str:
        """The text that is certain after `data`. Nothing after a stop sequence was met."""
        text = self._decode(data)
        return text if self._stop is None else self._stop.feed(text)

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        text = self._decode(b"", True)
        return text if self._stop is None else self._stop.feed(text) + self._stop.finish()


def overlap(text: str, sequence: str) -> int:
    """The length of the longest end of `text` that is a beginning of `sequence`, but not the whole of it."""
    for length in range(min(len(text), len(sequence) - 1), 0, -1):
        if text.endswith(sequence[:length]):
            return length
    return 0
