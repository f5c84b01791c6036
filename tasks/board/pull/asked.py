"""What somebody asked for when they asked for a model: a name, a repository, an address or a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from tasks.board.pull.errors import PullFailed
from tasks.commands import CommandCode


@dataclass(frozen=True, slots=True)
class Name:
    """A short name, such as `qwen3:0.6b`."""

    name: str


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of Hugging Face; of its files the one named, or one of that quantization, or one that fits."""

    repository: str
    quantization: str | None = None
    file: str | None = None
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class Address:
    """A file somewhere in the network."""

    url: str


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or a folder with one, on this machine."""

    path: Path


Asked: TypeAlias = Name | Repository | Address | Place

EXAMPLES = (
    "Name a model, such as qwen3:0.6b, or a repository of Hugging Face, such as Qwen/Qwen3-0.6B-GGUF (with :Q4_K_M behind it "
    "for that quantization)."
)
MOST = 1000
"""Characters that are read at all."""

_WORD = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"{_WORD}(?::{_WORD})?", re.ASCII)
_REPOSITORY = re.compile(rf"({_WORD}/{_WORD})(?::({_WORD})|((?:/{_WORD})+))?", re.ASCII)
_HUBS = ("hf.co/", "huggingface.co/")


def parse(text: str, *, local: bool) -> Asked:
    """Understand what was asked for. `local` allows addresses and paths too, for people at the machine itself.

    Raises `PullFailed`.
    """
    text = text.strip()
    found: Asked
    if not text:
        raise PullFailed(CommandCode.SOURCE_MISSING, f"Nothing was named to be pulled. {EXAMPLES}")
    if len(text) > MOST:
        raise _unknown(text[:50] + "…")
    if text.startswith(("http://", "https://")):
        found = _hub_page(text) or Address(text)
    else:
        bare = next((text.removeprefix(hub) for hub in _HUBS if text.startswith(hub)), text)
        if text.startswith(("/", "./", "../", "~")) or (bare == text and text.endswith("/")) or text in (".", ".."):
            found = Place(Path(text).expanduser())
        elif local and bare == text and Path(text).exists():
            found = Place(Path(text))
        elif match := _REPOSITORY.fullmatch(bare):
            found = Repository(match[1], match[2], match[3].strip("/") if match[3] else None)
        elif _NAME.fullmatch(text):
            found = Name(text.lower())
        else:
            raise _unknown(text)
    if not local and isinstance(found, Address | Place):
        raise PullFailed(
            CommandCode.SOURCE_FORBIDDEN,
            "Addresses and paths are pulled at the board itself only: `rockchipllama models pull …` there. From here, name a "
            "model, such as qwen3:0.6b, or a repository of Hugging Face, such as Qwen/Qwen3-0.6B-GGUF.",
        )
    return found


def _hub_page(url: str) -> Repository | None:
    """The repository, when an address is that of its page or of one of its files."""
    parts = urlsplit(url)
    if parts.hostname not in ("hf.co", "huggingface.co"):
        return None
    words = unquote(parts.path).strip("/").split("/")
    if len(words) < 2 or not all(re.fullmatch(_WORD, word, re.ASCII) for word in words[:2]):
        return None
    if len(words) == 2 or (len(words) == 4 and words[2] == "tree"):
        revision = words[3] if len(words) == 4 else "main"
        return Repository("/".join(words[:2]), revision=revision)
    if len(words) > 4 and words[2] in ("resolve", "blob"):
        return Repository("/".join(words[:2]), file="/".join(words[4:]), revision=words[3])
    return None


def _unknown(text: str) -> PullFailed:
    return PullFailed(
        CommandCode.SOURCE_MISSING,
        f"'{text}' is nothing that can be pulled. {EXAMPLES}",
    )
