"""The `context` of `/api/generate`: a conversation as numbers, which a client sends back to go on with it.

Clients need not understand it. Ollama puts the token ids of one model there; here it is the text itself, three bytes to a
number, so it is good for every model, and an answer needs no board to make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from api.errors import invalid

Turn: TypeAlias = tuple[Literal["system", "user", "assistant"], str]

MARK = 0x524C01
"""The first number: this server's, version 1. The second is how many bytes there are."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(tuple[Turn, ...])


def encode(turns: Sequence[tuple[str, str]]) -> list[int]:
    """The turns as numbers."""
    data = _encoder.encode(turns)
    padded = data + bytes(-len(data) % 3)
    return [MARK, len(data), *(int.from_bytes(padded[at : at + 3], "big") for at in range(0, len(padded), 3))]


def decode(numbers: Sequence[int]) -> tuple[Turn, ...]:
    """The turns in a `context`; none in an empty one. Raises `HttpProblem` when this server did not make it."""
    if not numbers:
        return ()
    try:
        if numbers[0] != MARK:
            raise ValueError
        data = b"".join(number.to_bytes(3, "big") for number in numbers[2:])
        return _decoder.decode(data[: numbers[1]])
    except (ValueError, OverflowError, IndexError, msgspec.DecodeError):
        raise invalid(
            "context was not made by this server: it is the numbers of an earlier answer, sent back as they came; leave it "
            "out to begin anew",
            "context",
        ) from None
