"""A line to try a model with, of what it can do."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

_ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    # A bound, because small models are slow to come to an end, and nothing is seen until then.
    "chat": (
        "chat/completions",
        {"max_tokens": 60, "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    ),
    "completion": ("completions", {"max_tokens": 60, "prompt": "The sky is blue because"}),
    "embedding": ("embeddings", {"input": "Why is the sky blue?"}),
    "rerank": (
        "rerank",
        {"query": "Why is the sky blue?", "documents": ["Air scatters blue light most.", "Bread is baked."]},
    ),
}
"""Path and body, most telling first."""


def try_it(url: str, model: str | None, capabilities: Collection[str], *, key: bool = False) -> str:
    """The command, over two lines. `key`: clients must show one. A model that says nothing of itself is asked to chat."""
    can = next((each for each in _ASKED if each in capabilities), "chat")
    path, asked = _ASKED[can]
    body = json.dumps(({"model": model} if model else {}) | asked)
    shown = " -H 'Authorization: Bearer YOUR-KEY'" if key else ""
    return f"curl {url}/v1/{path} -H 'Content-Type: application/json'{shown} \\\n    -d '{body}'"
