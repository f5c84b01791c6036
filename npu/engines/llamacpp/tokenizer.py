"""llama.cpp's own tokenizer, asked over a socket, and kept from texts it would choke on.

It needs seconds for a megabyte, its time grows with the square of the markers in a text, and on a word without end it falls
over. So a text that cannot fit into the context is refused before the server sees it, the others are handed over cut at their
markers, and what is left is bounded in size and time.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from npu.engine import Tokenizer
from npu.engines.llamacpp.server import Address, Call, read_address
from npu.errors import ContextTooLong, EngineFailed, PromptRefused
from npu.model import Model
from npu.vocabulary import TextPiece, Vocabulary

CALL_SECONDS = 30.0
"""How long tokenizing one text may take, while every core computes."""

PROBE_SECONDS = 5.0
"""How long tokenizing one letter may take, by which a stuck server is told from a text that takes too long."""

BYTES_PER_TOKEN = 16
SMALLEST_BOUND = 64 << 10
"""A text may have so many bytes for each token of the context, or so many in all; natural ones have 4 for each."""

LONGEST_RUN = 1 << 16
"""Characters without a blank, or blanks in a row. Many tokenizers go deeper with each of them, until the stack ends: the one
the server has (`STACK_BYTES` in its script) is good for nearly three times as many."""

_RUNS = re.compile(r"[\S\x1c-\x1f]+|\s+")


class ServerOwner(Protocol):
    """Who can start the server anew."""

    def revive(self) -> None:
        """Start it if it died while nobody asked it anything."""

    def restart(self, address: Address) -> None:
        """Replace the server at `address`, whatever it is doing."""

    def last_words(self) -> str | None:
        """How it ended, as a sentence; None while it runs."""


class ServerTokenizer(Tokenizer):
    """The tokenizer of one model, served by whichever engine has it loaded.

    Bytes of tokens are read from the GGUF itself, since the server answers in text and would replace half a character.
    """

    def __init__(self, model: Model, folder: Path, vocabulary: Vocabulary, owner: ServerOwner | None) -> None:
        """`owner` is the engine in this process; None where another process has it, and a stuck server must be left alone."""
        self._id = model.id
        self._folder = folder
        self._vocabulary = vocabulary
        self._owner = owner

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """As the contract says. Raises `PromptRefused` on half a surrogate pair and on a text that takes too long, its kind
        `ContextTooLong` where that is certain without counting; `EngineFailed` while the model is not loaded, and where
        another process' server is stuck."""
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise PromptRefused("The text is not valid Unicode: it holds half of a surrogate pair.") from error
        if self._owner is not None:
            self._owner.revive()
        address = read_address(self._folder)
        if address is None:
            raise self._absent()
        context = address.context_length
        self._check(-(-size // self._vocabulary.longest), context)
        pieces = self._vocabulary.cut(text, parse_special)
        markers = [piece.marker for piece in pieces if piece.marker]
        rest = size - sum(map(len, map(str.encode, markers)))
        self._check(len(markers) + -(-rest // self._vocabulary.longest), context)
        if len(text) > LONGEST_RUN and any(len(run[0]) > LONGEST_RUN for run in _RUNS.finditer(text)):
            raise PromptRefused(
                f"The prompt has more than {LONGEST_RUN} characters in a row without a blank between them, or as many blanks, "
                "which llama.cpp's tokenizer does not survive. Shorten it, or break it up."
            )
        bound = max(SMALLEST_BOUND, BYTES_PER_TOKEN * context)
        if size > bound:
            beginning = self._vocabulary.cut(_beginning(text, bound), parse_special)
            self._check(len(self._ask(beginning, False, parse_special)), context)
            raise PromptRefused(
                f"The prompt has {size} bytes, and this model takes {bound} at most: {BYTES_PER_TOKEN} for each token of "
                "its context. Shorten the messages."
            )
        return self._ask(pieces, add_special, parse_special)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes the tokens add to a text; control tokens add none. Needs no engine."""
        return self._vocabulary.decode(tokens)

    @property
    def digest(self) -> str:
        """That of the vocabulary in the file."""
        return self._vocabulary.digest

    @property
    def ending(self) -> Sequence[int]:
        """Nothing: this engine's models are not asked for embeddings."""
        return ()

    def _check(self, at_least: int, context: int) -> None:
        if at_least >= context:
            raise ContextTooLong(at_least, None, context, at_least=True)

    def _ask(self, pieces: Sequence[TextPiece], add_special: bool, parse_special: bool) -> list[int]:
        """A server found stuck or dead is replaced by its owner, and asked once more unless this text is to blame.

        Who is not its owner cannot replace it, and must not take its state for a fault of the text.
        """
        texts = [piece.marker + piece.text for piece in pieces]
        body = {
            "content": texts if len(texts) > 1 else "".join(texts),
            "add_special": add_special,
            "parse_special": parse_special,
        }
        for again in (True, False):
            address = read_address(self._folder)
            if address is None:
                raise self._absent()
            try:
                tokens = Call(address, "/tokenize", body, CALL_SECONDS).result()["tokens"]
                assert isinstance(tokens, list)
                return tokens
            except TimeoutError as error:
                if self._owner is None:
                    to_blame = self._answers(address)
                else:
                    to_blame = not again or self._answers(address)
                    self._owner.restart(address)
                if to_blame:
                    raise PromptRefused(
                        f"The prompt could not be tokenized within {CALL_SECONDS:g} seconds. Shorten the messages, long runs "
                        "of one character above all."
                    ) from error
                if self._owner is None:
                    raise EngineFailed(
                        f"The llama.cpp of {self._id} is stuck: it tokenized neither this text within {CALL_SECONDS:g} seconds "
                        f"nor a single letter within {PROBE_SECONDS:g}. Its worker replaces it with the next job; try again."
                    ) from error
            except (FileNotFoundError, ConnectionError, http.client.HTTPException) as error:
                words = self._owner.last_words() if self._owner is not None else None
                if self._owner is None or words is None:
                    raise self._absent() from error
                self._owner.revive()
                if not again:
                    raise PromptRefused(
                        f"{words[:-1]} while it tokenized the prompt, twice in a row. Shorten the messages."
                    ) from error
            except (OSError, ValueError, KeyError) as error:
                raise EngineFailed(f"The tokenizer of {self._id} failed: {error}.") from error
        raise AssertionError("unreachable")

    def _answers(self, address: Address) -> bool:
        try:
            Call(address, "/tokenize", {"content": "a"}, PROBE_SECONDS).result()
        except (OSError, ValueError, http.client.HTTPException):
            return False
        return True

    def _absent(self) -> EngineFailed:
        return EngineFailed(f"{self._id} is not loaded yet, and only its engine can tokenize. Load it first.")


def _beginning(text: str, size: int) -> str:
    """At most `size` bytes of `text`, to the end of a word where there is one."""
    beginning = text.encode()[:size].decode(errors="ignore")
    return beginning[: beginning.rfind(" ")] if " " in beginning[1:] else beginning
