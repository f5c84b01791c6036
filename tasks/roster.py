"""Which models exist, what they can do, and who serves them now."""

from __future__ import annotations

import msgspec

CARD_VERSION = 1


class Card(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a board says of a model it has. Kept after the board is gone: known but unserved is 503, unknown 404."""

    id: str
    """The short name: lower-case letters, digits, `.`, `_`, `-`. It names queues, so nothing else may be in it."""
    board: str
    names: tuple[str, ...] = ()
    """Further names it answers to, Ollama's `name:tag` first."""
    engine: str = ""
    engine_version: str = ""
    context_length: int = 0
    created: int = 0
    """Unix seconds."""
    size_bytes: int = 0
    family: str = ""
    parameters: str = ""
    """Such as `0.6B`."""
    quantization: str = ""
    chat: bool = True
    """Has a chat template."""
    refuses: dict[str, str] = {}
    """Fields of a request it cannot honour, each with the reason."""
    notes: tuple[str, ...] = ()
    """What its user should know."""
    version: int = CARD_VERSION
