"""Finds a model's chat template, with the special tokens it mentions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from npu.chat_template import ChatTemplate
from npu.errors import ModelRefused
from npu.gguf import Gguf
from npu.model import Model

MAX_FILE_BYTES = 4 << 20

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def find_template(model: Model, gguf: Gguf | None) -> ChatTemplate | None:
    """The first of: the manifest's template, `chat_template.jinja`, `tokenizer_config.json`, the GGUF's own; else None.

    Special tokens come from `tokenizer_config.json` where it names them, else from the GGUF. The two files lie beside the
    weights. Raises `ModelRefused` when one of them cannot be read.
    """
    config = _tokenizer_config(model.folder / "tokenizer_config.json")
    source = model.template or _read(model.folder / "chat_template.jinja") or _configured(config)
    if not source and gguf is not None:
        source = gguf.chat_template or ""
    if not source:
        return None
    tokens = {name: _token(config.get(name)) for name in _TOKENS}
    if gguf is not None:
        for name, text in tokens.items():
            stored = {"pad_token": "padding", "unk_token": "unknown"}.get(name, name.removesuffix("_token"))
            tokens[name] = text or gguf.special_token(stored)
    return ChatTemplate(
        source,
        bos_token=tokens.pop("bos_token"),
        eos_token=tokens.pop("eos_token"),
        special_tokens=tokens,
        options=dict(model.template_options),
    )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelRefused(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB; this is no template. Remove it.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ModelRefused(f"{path} cannot be read: {error}. Mend it or remove it.") from error


def _tokenizer_config(path: Path) -> dict[str, Any]:
    text = _read(path)
    try:
        config = json.loads(text) if text else {}
    except ValueError as error:
        raise ModelRefused(f"{path} is not JSON: {error}. Fetch it again or remove it.") from error
    if not isinstance(config, dict):
        raise ModelRefused(f"{path} is not a JSON object. Fetch it again or remove it.")
    return config


def _configured(config: dict[str, Any]) -> str:
    template = config.get("chat_template")
    if isinstance(template, list):  # Several, each with a name; chats use the one called `default`.
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _token(value: object) -> str:
    if isinstance(value, dict):  # The form of an added token, with its flags.
        value = value.get("content")
    return value if isinstance(value, str) else ""
