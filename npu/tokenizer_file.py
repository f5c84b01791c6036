"""A model's tokenizer from the `tokenizer.json` beside its weights, as the `tokenizers` package reads it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npu.errors import ModelRefused, NpuError, PromptRefused
from npu.template_search import MAX_FILE_BYTES
from npu.vocabulary import BYTE_OF

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

MAX_TOKENIZER_BYTES = 64 << 20
"""How large a `tokenizer.json` may be: twice the largest in use, that of Gemma 3."""

MAX_TEXT_BYTES = 1 << 20
"""How long a text may be, in UTF-8. The package holds Python's lock until it is through, and takes up to 2 seconds and
400 MB for this much on a PC; a text of this length that fits a context of 16,384 tokens would be 64 bytes to each."""

_END_NAMES = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|endoftext|>")
"""Tokens that end a turn in one family or another, also where the files forget to say so."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class FileTokenizer:
    """Byte-level BPE (Qwen, Llama 3, SmolLM) and what came from SentencePiece (Gemma, Llama 2, Phi 3).

    Special tokens (`<|im_start|>`) add nothing to a text: they steer, they are not said. Other added tokens (`<think>`) add
    their own text, and are read in a text however `parse_special` is.

    `decode(encode(text))` is the text again, byte for byte, as far as the vocabulary keeps it: one with a normalizer gives
    back what that made of it (NFC in Qwen, `▁` read as a blank in SentencePiece), one that begins each text with a blank
    (Llama 2) gives that blank too, and added tokens may swallow the blanks beside them (`lstrip`, `rstrip`). To take such a
    blank away would be wrong in the middle of an answer, and a token has the same bytes everywhere.
    """

    def __init__(
        self, tokenizer: Tokenizer, replaced: str | None, end_tokens: frozenset[int], bos: int | None, digest: str
    ) -> None:
        """`replaced` is what stands for a blank in the vocabulary; None means it is written in bytes. `digest` is that of the
        file."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.digest = digest
        self.end_tokens = end_tokens
        """Tokens that end an answer."""
        self._tokenizer = tokenizer
        self._replaced = replaced
        self._added: Mapping[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self._size = max(tokenizer.get_vocab_size(with_added_tokens=True), max(self._added, default=-1) + 1)
        self._lock = threading.Lock()
        sample = tokenizer.encode("a", add_special_tokens=True)
        mask = sample.special_tokens_mask
        self._front = sample.ids[: mask.index(0)] if 0 in mask else []
        self.ending: Sequence[int] = sample.ids[len(mask) - mask[::-1].index(0) :] if 0 in mask else []
        """What the file's post-processor puts behind a text: an embedding is often the row of this very token."""
        self.bos = bos if bos is not None or not self._front else self._front[0]
        """The token a text begins with, where the model has one; whether `encode` puts it there is the file's choice."""

    def __len__(self) -> int:
        """How many ids there are, added tokens included; a few may stand for nothing."""
        return self._size

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of `text`. `add_special` puts in front what the file's post-processor puts there (BOS, or nothing).

        Raises `PromptRefused` on half a surrogate pair, on more than `MAX_TEXT_BYTES`, and on a text the vocabulary has
        no way to write.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise PromptRefused("The text is not valid Unicode: it holds half of a surrogate pair.") from error
        if size > MAX_TEXT_BYTES:
            raise PromptRefused(
                f"The text has {size} bytes, and at most {MAX_TEXT_BYTES} can be read at once: more would not fit the "
                "model's context either. Shorten it."
            )
        with self._lock:  # The package keeps this choice in the tokenizer, not in the call.
            self._tokenizer.encode_special_tokens = not parse_special
            try:
                ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            except BaseException as error:
                if not _is_package_error(error):
                    raise
                raise PromptRefused(f"The model's tokenizer cannot read this text: {error}.") from error
        return [*self._front, *ids] if add_special else ids

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens` in a row. Raises `PromptRefused` on an id outside the vocabulary."""
        return b"".join(map(self.bytes_of, tokens))

    def bytes_of(self, token: int) -> bytes:
        """What `token` adds to a text. Raises `PromptRefused` on an id outside the vocabulary."""
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else self._plain(added.content)
        text = self._tokenizer.id_to_token(token) if 0 <= token < self._size else None
        if text is None:
            raise PromptRefused(f"Token {token} is outside the vocabulary, whose ids go from 0 to {self._size - 1}.")
        if self._replaced is None:
            try:
                return bytes(map(BYTE_OF.__getitem__, text))
            except KeyError:  # Not written in that alphabet: it means itself.
                return text.encode()
        byte = _BYTE_TOKEN.fullmatch(text)
        return bytes.fromhex(byte[1]) if byte else self._plain(text)

    def _plain(self, text: str) -> bytes:
        return (text if self._replaced is None else text.replace(self._replaced, " ")).encode()


def open_tokenizer_file(folder: Path) -> FileTokenizer | None:
    """The tokenizer of the model in `folder`, or None when there is no `tokenizer.json`.

    `tokenizer_config.json` and `generation_config.json` beside it say which tokens end an answer. Raises `ModelRefused` when
    one of the files is damaged or too large, and on a kind of vocabulary whose bytes are not known here.
    """
    path = folder / "tokenizer.json"
    data = _read(path, MAX_TOKENIZER_BYTES)
    if data is None:
        return None
    from tokenizers import Tokenizer

    config = _read_object(folder / "tokenizer_config.json")
    generation = _read_object(folder / "generation_config.json")
    try:
        tokenizer = Tokenizer.from_buffer(data)
        replaced = _replaced(path, tokenizer)
        named = tokenizer.token_to_id(_text(config.get("bos_token")))
        ends = _end_tokens(tokenizer, config, generation)
        return FileTokenizer(tokenizer, replaced, ends, named, hashlib.sha256(data).hexdigest())
    except NpuError:
        raise
    except BaseException as error:
        if not _is_package_error(error):
            raise
        raise ModelRefused(f"{path} is no tokenizer: {error}. Fetch the file again.") from error


def _is_package_error(error: BaseException) -> bool:
    # It raises bare exceptions; and what is a crash to the Rust inside comes as one that `Exception` does not catch.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _replaced(path: Path, tokenizer: Tokenizer) -> str | None:
    steps = list(_steps(json.loads(tokenizer.decoder.__getstate__()))) if tokenizer.decoder is not None else []
    kinds = [str(step["type"]) for step in steps]
    if "ByteLevel" in kinds:
        return None
    for step in steps:
        if step["type"] == "Metaspace":
            return str(step["replacement"])
        if step["type"] == "Replace" and step["content"] == " " and "String" in step["pattern"]:
            return str(step["pattern"]["String"])
    raise ModelRefused(
        f"{path}: its tokens are joined by {', '.join(kinds) or 'nothing'}, and what bytes they stand for is known here for "
        "byte-level BPE (`ByteLevel`) and SentencePiece (`Metaspace`, or `Replace` with a blank) alone. Use another model."
    )


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _end_tokens(tokenizer: Tokenizer, config: dict[str, Any], generation: dict[str, Any]) -> frozenset[int]:
    special = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found = {special[name] for name in _END_NAMES if name in special}
    named = tokenizer.token_to_id(_text(config.get("eos_token")))
    if named is not None:
        found.add(named)
    listed = generation.get("eos_token_id")
    for token in listed if isinstance(listed, list) else [listed]:
        if type(token) is int and 0 <= token < 2**32 and tokenizer.id_to_token(token) is not None:
            found.add(token)
    return frozenset(found)


def _text(value: object) -> str:
    if isinstance(value, dict):  # The form of an added token, with its flags.
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelRefused(f"{path} cannot be read: {error.strerror}. Mend it or remove it.") from error
    if len(data) > limit:
        raise ModelRefused(f"{path} is larger than {limit >> 20} MB; nothing of this name is. Fetch it again.")
    return data


def _read_object(path: Path) -> dict[str, Any]:
    data = _read(path, MAX_FILE_BYTES)
    try:
        value = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} is not JSON: {error}. Fetch it again or remove it.") from error
    if not isinstance(value, dict):
        raise ModelRefused(f"{path} is not a JSON object. Fetch it again or remove it.")
    return value
