"""The vocabulary of simulated models: bytes, some common words, and the control tokens of a chat.

Text is cut the same way by the C source, by `Language` and by the Hugging Face `tokenizers` library: control and marker
tokens first; then each space takes as many letters of a known word with it as it can; what is left is single bytes.
For that every beginning of a word is a token too, and every merge begins at the space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_WORDS: Final = """
    the a and of to in is it on for with as by this that from at one two three
    board chip core kernel driver memory queue token model answer question word number name time day night year
    light water stone tree river bird house city garden window music color blue green red white black small large
    quick slow warm cold bright quiet simple first last new old good long high open
    runs waits turns falls grows sings moves makes gives keeps holds finds says yes no
    café naïve fiancée grün
"""
CHARACTERS: Final = ("é", "ü", "ß", "ñ", "€", "→", "语", "😀", "🚀")
"""What a simulated model says besides words; it says them byte by byte."""

BYTES: Final = 256
END: Final = "<|im_end|>"
CONTROL: Final = ("<|endoftext|>", "<|im_start|>", END)
MARKERS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Tokens of their own which are text all the same."""


@dataclass(frozen=True, slots=True)
class Token:
    data: bytes
    kind: str
    """`byte`, `start` (of a word), `word`, `control` or `marker`."""


@cache
def vocabulary() -> tuple[Token, ...]:
    """Every token; its index is its id, and that of a single byte is the byte."""
    tokens = [Token(bytes([byte]), "byte") for byte in range(BYTES)]
    words = [f" {word}" for word in dict.fromkeys(_WORDS.split())]
    whole = {word.encode() for word in words if word.isascii()}
    seen: set[bytes] = set()
    for word in words:
        ascii_part = word[: next((at for at, letter in enumerate(word) if not letter.isascii()), len(word))].encode()
        for stop in range(2, len(ascii_part) + 1):
            prefix = ascii_part[:stop]
            if prefix not in seen:
                seen.add(prefix)
                tokens.append(Token(prefix, "word" if prefix in whole else "start"))
    tokens += [Token(text.encode(), "control") for text in CONTROL]
    return (*tokens, *(Token(text.encode(), "marker") for text in MARKERS))


def tokenizer_json(tokens: tuple[Token, ...]) -> dict[str, Any]:
    """The same vocabulary as a `tokenizer.json` of the `tokenizers` library: byte-level BPE without a regex."""
    letters = byte_letters()
    added = [(number, token) for number, token in enumerate(tokens) if token.kind in ("control", "marker")]
    learned = [token.data for token in tokens if token.kind not in ("control", "marker")]
    spelled = ["".join(letters[byte] for byte in data) for data in learned]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token.data.decode(),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token.kind == "control",
            }
            for number, token in added
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {text: number for number, text in enumerate(spelled)},
            "merges": [[text[:-1], text[-1]] for text in spelled if len(text) > 1],
        },
    }


def byte_letters() -> Mapping[int, str]:
    """The character that stands for each byte in byte-level vocabularies: itself where it prints, else one above 255."""
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    return dict(_letters(printing))


def _letters(printing: set[int]) -> Iterator[tuple[int, str]]:
    moved = 0
    for byte in range(BYTES):
        yield byte, chr(byte if byte in printing else BYTES + moved)
        moved += byte not in printing
