"""Log probabilities of tokens, told with the visible text that they end in."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from npu.engine import Piece, Tokenizer
from npu.errors import PromptRefused
from tasks.events import Event, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta, ToolCallStarted


class TokenLogprobs:
    """Those of one answer. Told are the tokens whose text is visible as a whole; those of thoughts and calls are not.

    Events come later than their tokens, since what may belong to a stop sequence or a call is held back. So tokens wait here
    for the text that they made.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        """Of the tokens that wait, and of those before them that nothing was said of."""
        self._waiting: deque[tuple[TokenLogprob | None, int]] = deque()
        """Each with where its text ends."""
        self._late: tuple[TokenLogprob, ...] = ()

    def heard(self, data: bytes, logprob: TokenLogprob | None) -> None:
        """The engine gave a token; None where it was not the model's choice."""
        self._text += self._decoder.decode(data)
        inside = bool(self._decoder.getstate()[0])  # its last character is whole with a later token
        self._waiting.append((logprob if data else None, len(self._text) + inside))

    def ended(self) -> None:
        """Nothing follows."""
        self._text += self._decoder.decode(b"", final=True)

    def owe(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Tell these with the next text: theirs was sent without them."""
        self._late = (*self._late, *logprobs)

    def told(self, events: Iterable[Event]) -> tuple[Event, ...]:
        """The events with the tokens that end in them."""
        return tuple(map(self._with, events))

    def _with(self, event: Event) -> Event:
        match event:
            case TextDelta(text):
                logprobs, self._late = (*self._late, *self._take(text)), ()
                return msgspec.structs.replace(event, logprobs=logprobs)
            case ReasoningDelta(text):
                self._take(text)
            case ToolCallStarted() | ToolCallDelta():
                self._text = ""
                self._waiting.clear()
        return event

    def _take(self, text: str) -> tuple[TokenLogprob, ...]:
        """What waited up to the end of `text`, of it those that end in it; marks and blanks before it are nobody's."""
        start = self._text.find(text)
        if start < 0:
            return ()
        end = start + len(text)
        taken: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][1] <= end:
            logprob, at = self._waiting.popleft()
            if logprob is not None and at > start:
                taken.append(logprob)
        self._text = self._text[end:]
        self._waiting = deque((logprob, at - end) for logprob, at in self._waiting)
        return tuple(taken)


def logprob_of(piece: Piece, tokenizer: Tokenizer) -> TokenLogprob | None:
    """What the engine told of a token, with the bytes of those that were likely instead."""
    if piece.logprob is None:
        return None
    return TokenLogprob(
        piece.data, piece.logprob, tuple((_bytes(tokenizer, token), logprob) for token, logprob in piece.top)
    )


def rest_of(said: Sequence[Event], sent: Sequence[Event]) -> tuple[TokenLogprob, ...]:
    """The tokens told in `said` that were not told in `sent`, its beginning."""
    return _all(said)[len(_all(sent)) :]


def _all(events: Iterable[Event]) -> tuple[TokenLogprob, ...]:
    return tuple(each for event in events if isinstance(event, TextDelta) for each in event.logprobs)


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    try:
        return tokenizer.decode((token,))
    except PromptRefused:  # an id that stands for nothing
        return b""
