"""Log probabilities, as chats and as plain completions have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.events import TokenLogprob


def of_chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """The `logprobs` of a chat's choice or chunk; None where there are none."""
    if not tokens:
        return None
    content = [
        _token(each.token, each.logprob) | {"top_logprobs": [_token(token, logprob) for token, logprob in each.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """The same of a completion's, whose first token stands `offset` characters behind the beginning of the text."""
    if not tokens:
        return None
    offsets, before = [], b""
    for each in tokens:
        offsets.append(offset + len(before.decode(errors="ignore")))
        before += each.token
    return {
        "tokens": [_text(each.token) for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        # The token itself is always among them, and may be one more than was asked for.
        "top_logprobs": [
            {_text(token): logprob for token, logprob in (*each.top, (each.token, each.logprob))} for each in tokens
        ]
        if any(each.top for each in tokens)
        else None,
        "text_offset": offsets,
    }


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": logprob, "bytes": list(token)}


def _text(token: bytes) -> str:
    return token.decode(errors="replace")
