"""A model's card: what a board says of a model it has."""

from __future__ import annotations

import msgspec

CARD_VERSION = 1


class LastLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What the runtime told when a board last loaded the model; None is what it did not tell."""

    runtime: str
    """Its version."""
    driver: str | None = None
    platform: str | None = None
    toolkit: str | None = None
    max_context: int | None = None
    npu_cores: int | None = None
    dtype: str | None = None


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """What trying the model out on a board has shown. None and `unknown` are what could not be told."""

    text: str = "unknown"
    """`sane`, `suspect` or `unknown`, and so for the logits."""
    said: str = ""
    """What it said to a simple question, when that is suspect."""
    reuse: bool | None = None
    counts_cached: bool = False
    abort_ms: float | None = None
    logits: str = "unknown"
    logits_ms: float | None = None
    prefill_tps: float | None = None
    decode_tps: float | None = None
    parks: bool | None = None
    not_parked: str = ""
    park_ms: float | None = None
    unpark_ms: float | None = None
    parked_bytes: int | None = None
    in_time: bool = True


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
    memory_bytes: int = 0
    """About what it takes with its context once it is loaded; 0 where nobody told."""
    family: str = ""
    parameters: str = ""
    """Such as `0.6B`."""
    quantization: str = ""
    chat: bool = True
    """Has a chat template."""
    completion: bool = True
    """Can continue a text."""
    tools: bool = False
    """Calls tools that a chat gives it."""
    thinking: bool = False
    """Thinks before it answers, where the template lets it."""
    abilities: tuple[str, ...] = ("text",)
    """What it may be asked for: `text`, `embedding`, `rerank`."""
    embedding_length: int | None = None
    """Numbers in each of its vectors, where that is known."""
    adapters: tuple[str, ...] = ()
    """Its LoRA adapters: `id:adapter` is the two together."""
    base: str = ""
    """The id of the model it was made from; empty for one with weights of its own."""
    refuses: dict[str, str] = {}
    """Fields of a request it cannot honour, each with the reason."""
    notes: tuple[str, ...] = ()
    """What its user should know."""
    last_load: LastLoad | None = None
    """None before the first load, and of engines that have nothing to tell."""
    self_test: SelfTest | None = None
    """None where it was not tried out."""
    version: int = CARD_VERSION
    """A reader takes its own version and any older one; it skips a newer one. Fields it does not know it ignores."""

    @property
    def chats(self) -> bool:
        """Whether it answers messages, as most who name no model want."""
        return self.chat and "text" in self.abilities
