"""What a question needs of a library and a model; it travels to the question's process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One library, one model, and prompts for it as token ids, in its own template where it has one."""

    library: str
    runtime: str
    """A version of the family the library is called as."""
    weights: str
    context_length: int
    memory_domain: int = 0
    embed_flash: bool | None = None
    cpus: tuple[int, ...] = ()
    adapter: str | None = None
    """The file of a LoRA adapter made for this model."""
    end_tokens: tuple[int, ...]
    """Tokens that end an answer."""
    short: tuple[int, ...]
    """Asks for what is soon said, so that the answer ends by itself."""
    long: tuple[int, ...]
    """Asks for an answer of some length."""
    remember: tuple[int, ...]
    """Tells something."""
    recall: tuple[int, ...]
    """Asks for what `remember` told, and makes no sense without it."""
    character: tuple[int, ...]
    """Asks for characters that take several tokens each."""
    text: tuple[int, ...]
    """As many tokens of a plain text as the context holds."""


def read_material(decoded: Mapping[str, Any]) -> Material:
    """What `asdict` made of it, once it went through JSON."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in decoded.items()
    }
    return Material(**fields)
