"""The tokens of a GGUF file as bytes: what each adds to a text, which ids can make up given bytes, and where a text may be
cut without changing its tokens."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from npu.errors import ModelRefused, PromptRefused
from npu.gguf import Gguf

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_END_NAMES = ("eos", "eot", "eom")


def _byte_level() -> dict[str, int]:
    # GPT-2's BPE writes bytes as printable characters: those that are printable in Latin-1 stand for themselves, the
    # others take the code points from 256 upwards, in order.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(shifted)}


BYTE_OF = _byte_level()
"""The byte that each character of that alphabet stands for."""


_PADDED = ("<mask>", "[MASK]")
"""Markers before which llama.cpp drops blanks, so that they belong together with the text before them."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A marker (empty at the beginning of a text) and what follows it."""

    marker: str
    text: str


class Vocabulary:
    """The tokens of one model. They stay in the file and are read when asked for.

    Control tokens (`<|im_start|>`) add nothing to a text, as in llama.cpp: they steer, they are not said.
    """

    def __init__(self, gguf: Gguf) -> None:
        """Raises `ModelRefused` on a kind of vocabulary whose bytes are not known here."""
        self._kind = gguf.text("tokenizer.ggml.model")
        if self._kind not in ("gpt2", "llama") or "tokenizer.ggml.tokens" not in gguf.strings:
            raise ModelRefused(
                f"{gguf.path}: its tokenizer is of the kind {self._kind or '(none)'!r}; this engine reads `gpt2` (byte-level "
                "BPE) and `llama` (SentencePiece). Use another model, or the same one converted anew."
            )
        self._path: Path = gguf.path
        self._strings = gguf.strings["tokenizer.ggml.tokens"]
        self._types = gguf.numbers.get("tokenizer.ggml.token_type", ())
        ends = (gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _END_NAMES)
        self.end_tokens = frozenset(end for end in ends if isinstance(end, int))
        """Tokens the file itself says end an answer."""
        with self._path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._fragments: dict[bytes, tuple[int, ...]] | None = None
        self._ends_texts = gguf.metadata.get("tokenizer.ggml.add_eos_token") is True

    def __len__(self) -> int:
        return len(self._strings.offsets)

    def bytes_of(self, token: int) -> bytes:
        """What `token` adds to a text. Raises `PromptRefused` on an id outside the vocabulary."""
        if not 0 <= token < len(self._strings.offsets):
            raise PromptRefused(f"Token {token} is outside the vocabulary, whose ids go from 0 to {len(self) - 1}.")
        raw = self._raw(token)
        kind = self._types[token] if token < len(self._types) else 1
        if kind in (_CONTROL, _UNKNOWN):
            return b""
        if kind == _USER_DEFINED:
            return raw
        return self._from_byte_level(raw) if self._kind == "gpt2" else self._from_sentencepiece(raw, kind == _BYTE)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens` in a row. Raises `PromptRefused` on an id outside the vocabulary."""
        return b"".join(map(self.bytes_of, tokens))

    def ways(self, data: bytes, count: int) -> Iterator[tuple[int, ...]]:
        """Each way to write `data`, a piece of text that ends inside a character, as exactly `count` tokens.

        Only tokens that themselves begin or end inside a character are considered, and those of no bytes are not.
        """
        if count == 0:
            if not data:
                yield ()
            return
        for size in range(1, len(data) - count + 2):
            for token in self._fragment_ids(data[:size]):
                for rest in self.ways(data[size:], count - 1):
                    yield (token, *rest)

    @cached_property
    def digest(self) -> str:
        """The same for the same tokens in the same order, whatever the weights are."""
        digest = hashlib.sha256(self._kind.encode())
        for token in range(len(self)):
            digest.update(self._raw(token) + b"\0")
        digest.update(repr(tuple(self._types)).encode())
        return digest.hexdigest()

    @cached_property
    def letter(self) -> int:
        """A token that is one whole character."""
        return next(token for token in range(len(self)) if self.bytes_of(token).isalnum())

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token, markers as they are written: no token stands for more of a text."""
        lengths = self._strings.lengths
        longest = max((len(self._raw(token)) for token in self._special), default=1)
        for token in sorted(range(len(self)), key=lengths.__getitem__, reverse=True):
            if lengths[token] <= longest:  # What a token adds is never longer than how it is written in the file.
                break
            longest = max(longest, len(self.bytes_of(token)))
        return longest

    def cut(self, text: str, parse_special: bool) -> list[TextPiece]:
        """`text` cut before each marker: tokenized one by one, the pieces give the tokens of the whole.

        The markers are control tokens, when `parse_special` says that they are read as such, and those a model's maker added.
        Of a text that is not to be cut there is one piece.
        """
        first, lengths, markers = self._cuts[parse_special]
        if not markers or self._ends_texts:
            return [TextPiece("", text)]
        pieces: list[TextPiece] = []
        marker, begin = "", 0
        for match in first.finditer(text):
            at = match.start()
            if at < begin:
                continue
            found = next((text[at : at + length] for length in lengths if text[at : at + length] in markers), None)
            if found is not None:
                if at:
                    pieces.append(TextPiece(marker, text[begin:at]))
                marker, begin = found, at + len(found)
        return [*pieces, TextPiece(marker, text[begin:])]

    def close(self) -> None:
        """Let go of the file. Twice is safe."""
        self._data.close()

    @cached_property
    def _special(self) -> list[int]:
        return [token for token, kind in enumerate(self._types) if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED)]

    @cached_property
    def _cuts(self) -> tuple[_Cuts, _Cuts]:
        # llama.cpp finds special tokens longest first, wherever they are. So it is certain to find one that no other can
        # overlap: its first character occurs inside no other, and none of its further ones begins another.
        texts = {token: self._raw(token).decode(errors="replace") for token in self._special}
        texts = {token: text for token, text in texts.items() if text and "\ufffd" not in text}
        firsts = {text[0] for text in texts.values()}
        inner = {char for text in texts.values() for char in text[1:]}
        clear = {
            token: text
            for token, text in texts.items()
            if text not in _PADDED and text[0] not in inner and firsts.isdisjoint(text[1:])
        }
        added = [text for token, text in clear.items() if self._types[token] == _USER_DEFINED]
        return _cuts_at(added), _cuts_at(list(clear.values()))

    def _fragment_ids(self, data: bytes) -> tuple[int, ...]:
        if self._fragments is None:
            found: dict[bytes, tuple[int, ...]] = {}
            for token in range(len(self)):
                piece = self.bytes_of(token)
                if piece and _is_fragment(piece):
                    found[piece] = (*found.get(piece, ()), token)
            self._fragments = found
        return self._fragments.get(data, ())

    def _raw(self, token: int) -> bytes:
        start = self._strings.offsets[token]
        return self._data[start : start + self._strings.lengths[token]]

    def _from_byte_level(self, raw: bytes) -> bytes:
        text = raw.decode(errors="replace")
        try:
            return bytes(map(BYTE_OF.__getitem__, text))
        except KeyError:  # Not written in that alphabet: a token somebody added as it is.
            return raw

    def _from_sentencepiece(self, raw: bytes, byte: bool) -> bytes:
        if byte and len(raw) == 6 and raw.startswith(b"<0x"):
            return bytes((int(raw[3:5], 16),))
        return raw.replace("▁".encode(), b" ")


_Cuts = tuple[re.Pattern[str], list[int], frozenset[str]]
"""How markers begin, how long they are (longest first), and what they are."""


def _cuts_at(markers: list[str]) -> _Cuts:
    firsts = "".join(sorted({marker[0] for marker in markers}))
    return (
        re.compile(f"[{re.escape(firsts)}]" if firsts else "(?!)"),
        sorted({len(marker) for marker in markers}, reverse=True),
        frozenset(markers),
    )


def _is_fragment(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return True
    return False
