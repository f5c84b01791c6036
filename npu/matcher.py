"""Follows a constraint along an answer, token by token, and says which tokens may come next."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from npu.constraint import Constraint
from npu.errors import PromptRefused
from npu.grammar import limits, refuse, write_grammar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from llguidance import LLMatcher, LLTokenizer


class Words(Protocol):
    """What is to be known of a vocabulary."""

    @property
    def end_tokens(self) -> Collection[int]:
        """Tokens that end an answer."""

    def __len__(self) -> int: ...

    def bytes_of(self, token: int) -> bytes:
        """What `token` adds to a text. Raises `PromptRefused` where it stands for nothing."""


class Encoder(Protocol):
    """The side of a tokenizer that makes tokens of a text."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]: ...


class Matchers:
    """Makes the matchers of one vocabulary. Usable from any thread.

    Nothing is made of the vocabulary before the first: a tree of its tokens takes 0.3 s and 24 MB for 49,152 of them, 1.5 s
    and 65 MB for 151,936, on a PC.
    """

    def __init__(self, words: Words, encoder: Encoder) -> None:
        self._words = words
        self._encoder = encoder
        self._lock = threading.Lock()
        self._tree: LLTokenizer | None = None

    def match(self, constraint: Constraint, said: Sequence[int] = ()) -> Matcher:
        """Follow an answer that begins with `said`. Raises `SamplingRefused` on a constraint that cannot be followed,
        `PromptRefused` where `said` does not fit it."""
        from llguidance import LLMatcher

        grammar = write_grammar(constraint, self.written)
        matcher = Matcher(LLMatcher(self._tokens(), grammar, log_level=0, limits=limits()), grammar, self._words)
        for token in said:
            if not matcher.accept(token):
                raise PromptRefused(
                    "What was said of this answer does not fit what it is held to, so it cannot be gone on with. Ask again."
                )
        return matcher

    def written(self, text: str) -> str:
        """`text` as grammars write it. A control token, which adds nothing to a text, is written as that token."""
        tokens = self._encoder.encode(text)
        if all(map(self._words.bytes_of, tokens)):
            return json.dumps(text)
        parts: list[str] = []
        plain = b""
        for token in (*tokens, None):
            data = b"" if token is None else self._words.bytes_of(token)
            if not data and plain:
                parts.append(json.dumps(plain.decode(errors="replace")))
            if not data and token is not None:
                parts.append(f"<[{token}]>")
            plain = plain + data if data else b""
        return " ".join(parts)

    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._tree is None:
                # Ready-made slices of the vocabulary would spare a millisecond now and then, and cost half the tree again.
                self._tree = LLTokenizer(
                    TokenizerWrapper(_Listed(self._words)), eos_token=sorted(self._words.end_tokens), slices=[]
                )
            return self._tree


class Matcher:
    """Follows one answer. It belongs to one run, and to one thread at a time."""

    def __init__(self, matcher: LLMatcher, grammar: str, words: Words) -> None:
        """Raises `SamplingRefused` on a grammar that cannot be followed."""
        self.grammar = grammar
        """What is followed, as llguidance reads it."""
        self._matcher = matcher
        self._size = len(words)
        self._ends = words.end_tokens
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> npt.NDArray[np.bool_]:
        """For each token whether it may come next; those that end an answer where it may end. Raises `SamplingRefused` when
        that takes too long to find out."""
        import numpy as np

        mask = self._matcher.compute_bitmask()
        self._check()
        return np.unpackbits(np.frombuffer(mask, np.uint8), count=self._size, bitorder="little").astype(np.bool_)

    def accept(self, token: int) -> bool:
        """Go on behind `token`, unless it may not come next. Raises `SamplingRefused` as `allowed` does."""
        if token in self._ends:
            return self.may_end
        if self.is_complete or not self._matcher.validate_tokens([token]):
            self._check()
            return False
        taken = self._matcher.consume_token(token)
        self._check()
        return bool(taken)

    def follow(self, token: int) -> bool:
        """Go on behind a token that was allowed; whether the answer is whole with it. Raises `SamplingRefused` as `allowed`
        does."""
        if not self.accept(token):
            raise RuntimeError(f"token {token} was not allowed here")
        return self.is_complete

    def _check(self) -> None:
        if self._matcher.is_error():
            raise refuse(self._matcher.get_error())


class _Listed:
    """A vocabulary as llguidance's `TokenizerWrapper` wants it."""

    bos_token_id = None

    def __init__(self, words: Words) -> None:
        self.tokens = [_marked(words, token) for token in range(len(words))]
        self.special_token_ids = [token for token, data in enumerate(self.tokens) if data.startswith(b"\xff")]
        self.eos_token_id = min(words.end_tokens, default=0)

    def __call__(self, data: bytes) -> list[int]:
        """Would be asked for the tokens of what a grammar forces, which nobody here wants to know."""
        return []


def _marked(words: Words, token: int) -> bytes:
    try:
        data = words.bytes_of(token)
    except PromptRefused:  # An id that stands for nothing.
        data = b""
    # No byte of UTF-8 is 255: what begins with it is in no text.
    return b"\xff<%d>" % token if token in words.end_tokens or not data else data
