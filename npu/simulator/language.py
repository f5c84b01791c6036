"""What a simulated model says, as the C source computes it, so that a test can know an answer beforehand.

The next token is a pure function of everything in the cache: each token's id, its place, and the adapter it was read with.
Whatever is lost, doubled or mixed up on the way changes all that follows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from npu.simulator.vocabulary import BYTES, CHARACTERS, END, vocabulary

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_PAUSES: Final = b".,"
_LINE: Final = ord("\n")
SPOKEN_BEFORE_END: Final = 4
"""An answer ends only after that many words, bytes of characters, full stops or commas in a row."""
LOGIT_CERTAIN: Final = 20.0
LOGIT_CHOICE: Final = 10.0


class Adapter(NamedTuple):
    """A LoRA adapter as far as it changes what is said: its name and its scale."""

    name: str
    scale: float = 1.0


class Choice(NamedTuple):
    """The token a context leads to, and whether no sampling chooses another, as in the middle of a character."""

    token: int
    certain: bool


class Language:
    """The language of one model file: its seed, whether it thinks, and the questions it knows the answers to.

    `answers` has each answer by a piece of the user's question; the first that fits is given.
    """

    def __init__(
        self,
        seed: int = 1,
        answers: Mapping[str, str] | None = None,
        *,
        thinking: bool = False,
        garbage: bool = False,
    ) -> None:
        self.tokens = vocabulary()
        self.thinking = thinking
        self.garbage = garbage
        self._start = _mix(seed)
        self._ids = {token.data: number for number, token in enumerate(self.tokens)}
        self._words = [number for number, token in enumerate(self.tokens) if token.kind == "word"]
        self._added = [token.data for token in self.tokens if token.kind in ("control", "marker")]
        self._spoken = {*self._words, *range(0x80, BYTES), *_PAUSES}
        self._characters = [character.encode() for character in CHARACTERS]
        self.end, self._turn = self._ids[END.encode()], self._ids[b"<|im_start|>"]
        self._think, self._thought = self._ids[b"<think>"], self._ids[b"</think>"]
        self._assistant, self._user = self.tokenize("assistant\n"), self.tokenize("user\n")
        self._answers = [(ask.encode(), self.tokenize(say)) for ask, say in (answers or {}).items()]

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, the names of control tokens in it read as such."""
        data, found, at = text.encode(), [], 0
        while at < len(data):
            piece = next((added for added in self._added if data.startswith(added, at)), b"")
            if not piece and data[at : at + 1] == b" ":
                while data[at : at + len(piece) + 1] in self._ids and at + len(piece) < len(data):
                    piece = data[at : at + len(piece) + 1]
            piece = piece or data[at : at + 1]
            found.append(self._ids[piece])
            at += len(piece)
        return found

    def text(self, tokens: Sequence[int], *, control: bool = False) -> bytes:
        """The bytes tokens stand for; those of control tokens only when `control` says so, of unknown ids none."""
        known = [self.tokens[number] for number in tokens if 0 <= number < len(self.tokens)]
        return b"".join(token.data for token in known if control or token.kind != "control")

    def next(self, tokens: Sequence[int], adapter: Adapter | None = None, *, ignore_eos: bool = False) -> Choice:
        """The greedy choice after `tokens`."""
        return self._next(tokens, self._hashes(tokens, adapter)[-1], ignore_eos)

    def expected_answer(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        adapter: Adapter | None = None,
        *,
        ignore_eos: bool = False,
        context: int | None = None,
        keep: int = 0,
    ) -> list[int]:
        """The greedy answer to a prompt, without the token that ends it.

        `context` is the length of the context, where it may overflow: `keep` tokens then stay at its start, and the older
        half of the rest is dropped.
        """
        cache, voice = list(tokens), _voice(adapter)
        state = self._hashes(cache, adapter)[-1]
        said: list[int] = []
        while len(said) < max_tokens:
            token = self._next(cache, state, ignore_eos).token
            if token == self.end:
                break
            said.append(token)
            if context is not None and len(cache) >= context:
                del cache[keep : keep + max(1, (len(cache) - keep) // 2)]
                state = self._hashes(cache, adapter)[-1]
            cache.append(token)
            state = _step(state, token, voice)
        return said

    def logits(self, tokens: Sequence[int], vocab_size: int, adapter: Adapter | None = None) -> list[float]:
        """The logits after `tokens`: highest at the greedy choice, then words; ids without a text are out of the question."""
        state = self._hashes(tokens, adapter)[-1]
        choice = self._next(tokens, state, False)
        words, known = set(self._words), len(self.tokens)
        row = []
        for number in range(vocab_size):
            noise = _noise(state, number)
            row.append(noise / 8192 if number in words else noise / 32768 - (10 if number < known else 20))
        row[choice.token] = LOGIT_CERTAIN if choice.certain else LOGIT_CHOICE
        return row

    def hidden(self, tokens: Sequence[int], width: int, adapter: Adapter | None = None) -> list[list[float]]:
        """The last hidden layer: a row for each token, made of all tokens up to it. Numbers from -1 to below 1."""
        states = self._hashes(tokens, adapter)
        return [[(_noise(state, place) - 32768) / 32768 for place in range(width)] for state in states[1:]]

    def _hashes(self, tokens: Sequence[int], adapter: Adapter | None) -> list[int]:
        voice, states = _voice(adapter), [self._start]
        for token in tokens:
            states.append(_step(states[-1], token, voice))
        return states

    def _next(self, tokens: Sequence[int], state: int, ignore_eos: bool) -> Choice:
        if self.garbage:
            return Choice(33 + _mix(state ^ 1) % 94, False)
        part, place = self._part(tokens)
        if part == "structure":
            return Choice(place, True)
        if part == "answer":
            known = self._known_answer(tokens, place)
            if known is not None and not (known == self.end and ignore_eos):
                return Choice(known, True)
        for length in (3, 2, 1):
            begun = bytes(tokens[-length:]) if all(token < BYTES for token in tokens[-length:]) else b""
            fitting = [one for one in self._characters if len(begun) == length < len(one) and one.startswith(begun)]
            if fitting:
                return Choice(fitting[_mix(state ^ 2) % len(fitting)][length], True)
        if part == "thought" and len(tokens) - place > SPOKEN_BEFORE_END and _mix(state ^ 3) % 8 == 0:
            return Choice(self._thought, True)
        drawn = _mix(state ^ 4)
        last = tokens[-SPOKEN_BEFORE_END:]
        if (
            drawn % 20 == 0
            and part != "thought"
            and not ignore_eos
            and len(last) == SPOKEN_BEFORE_END
            and self._spoken.issuperset(last)
        ):
            return Choice(self.end, False)
        kind, which = (drawn >> 8) % 16, drawn >> 16
        if kind == 0:
            return Choice(self._characters[which % len(self._characters)][0], False)
        if kind == 1:
            return Choice(_PAUSES[which % len(_PAUSES)], False)
        return Choice(self._words[which % len(self._words)], False)

    def _part(self, tokens: Sequence[int]) -> tuple[str, int]:
        """What the assistant is in the middle of, and the place where that began; for `structure` the token it needs."""
        turn = _last(tokens, self._turn, len(tokens))
        body = turn + 1 + len(self._assistant)
        if turn < 0 or list(tokens[turn + 1 : body]) != self._assistant:
            return "text", 0
        closed = _last(tokens, self._thought, len(tokens))
        if closed >= body:
            lines = 0
            while lines < 2 and closed + 1 + lines < len(tokens) and tokens[closed + 1 + lines] == _LINE:
                lines += 1
            if lines < 2 and closed + 1 + lines == len(tokens):
                return "structure", _LINE
            return "answer", closed + 1 + lines
        if body < len(tokens) and tokens[body] == self._think:
            return "thought", body
        if body == len(tokens) and self.thinking:
            return "structure", self._think
        return "answer", body

    def _known_answer(self, tokens: Sequence[int], begun: int) -> int | None:
        if not self._answers:
            return None
        end = _last(tokens, self._turn, len(tokens))
        while (turn := _last(tokens, self._turn, end)) >= 0:
            if list(tokens[turn + 1 : turn + 1 + len(self._user)]) == self._user:
                break
            end = turn
        else:
            return None
        asked = list(tokens[turn + 1 + len(self._user) : _last(tokens, self._turn, len(tokens))])
        text = self.text(asked[: asked.index(self.end)] if self.end in asked else asked)
        said = list(tokens[begun:])
        for question, answer in self._answers:
            if question in text:
                if answer[: len(said)] != said:
                    return None
                return answer[len(said)] if len(said) < len(answer) else self.end
        return None


def _last(tokens: Sequence[int], wanted: int, stop: int) -> int:
    return next((place for place in range(stop - 1, -1, -1) if tokens[place] == wanted), -1)


def _mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def _step(state: int, token: int, voice: int) -> int:
    return _mix(_mix(state ^ voice) + _GOLDEN * (token + 1) & _MASK)


def _voice(adapter: Adapter | None) -> int:
    if adapter is None:
        return 0
    voice = 0xCBF29CE484222325
    for byte in adapter.name.encode() + struct.pack("<f", adapter.scale):
        voice = (voice ^ byte) * 0x100000001B3 & _MASK
    return voice


def _noise(state: int, place: int) -> int:
    """16 bits of noise; cheap, because a row of logits takes 150,000 of them."""
    x = (state >> 32) ^ place * 0x9E3779B1 & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x85EBCA6B & 0xFFFFFFFF
    return (x ^ x >> 13) >> 16
