"""Reads what a weight file's name tells: family, size, quantization, context, chip."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from npu.file_name import is_text

SUFFIXES: dict[str, str] = {".gguf": "llamacpp", ".rkllm": "rkllm"}
"""The engine that runs a bare file, by its suffix."""

SOCS = ("rk3588s", "rk3588", "rk3583", "rk3576", "rk3562", "rv1126b")

_SEPARATORS = re.compile(r"[\s_-]+")
_SIZE = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([mbt])", re.IGNORECASE)
_CONTEXT = re.compile(r"(?:ctx|context)(\d+)(k?)|(\d+)k", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(?:w\d+a\d+|i?q\d+|tq\d+|fp?16|fp?32|bf16|int[48]|mxfp4)", re.IGNORECASE)
_QUANTIZATION_TAIL = re.compile(r"(?:\d|k|s|m|l|xs|xxs|xl|nl|g\d+)", re.IGNORECASE)
_CONVERSION = re.compile(
    r"(?:opt\d*|hybrid\d*|ratio|npu\d*|level\d*|gguf|rkllm|\d+of\d+|imat|imatrix|grq|gdq)", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PUBLISHER = re.compile(r"[a-z][a-z.]*", re.IGNORECASE)
_VERSION = re.compile(r"^([a-z]+)-(\d+(?:\.\d+)?)$")
_SPLIT_SIZE = re.compile(r"(?<=[-_])(\d)_(\d+b)(?=[-_]|$)", re.IGNORECASE)
_TUNED = re.compile(r"-(?:instruct|it|chat)$")
_VARIANTS = ("instruct", "it", "chat", "base", "thinking", "coder", "vl")


@dataclass(frozen=True, slots=True)
class ModelName:
    """What a file's name tells. Whatever it does not tell is empty, or None."""

    stem: str
    id: str
    """The short id, such as `smollm2-135m-instruct`."""
    tags: tuple[str, ...]
    """The same as `name:tag`, in full and as Ollama's users shorten it: `smollm2:135m-instruct`, `smollm2:135m`."""
    family: str = ""
    parameters: str = ""
    quantization: str = ""
    context_length: int | None = None
    soc: str | None = None


def is_weights(path: Path) -> bool:
    """Whether a file is one a model may be loaded from: by its suffix, named in UTF-8, not hidden, and not a part of one.

    A file still being fetched (`*.partial`) has another suffix; the second and further shards of a split GGUF, vision
    projectors (`mmproj…`) and adapters are no models of their own.
    """
    if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES or is_adapter(path) or not path.is_file():
        return False
    if not is_text(path.name):
        return False
    shard = re.search(r"-(\d{5})-of-\d{5}$", path.stem)
    return not path.name.lower().startswith("mmproj") and (shard is None or int(shard[1]) == 1)


def is_adapter(path: Path) -> bool:
    """Whether a file is a LoRA adapter by its name, as the vendor's converter names them: `…_lora.rkllm`."""
    return path.name.lower().endswith("_lora.rkllm") and not path.name.startswith(".")


def parse_model_name(stem: str) -> ModelName:
    """Understand a file's stem as far as it can be understood. Never fails: an odd name becomes a slug of itself."""
    # `internlm2-1_8b` means 1.8 billion.
    words = [word for word in _SEPARATORS.split(_SPLIT_SIZE.sub(r"\1.\2", _part_dots(stem))) if word]
    if len(words) > 1 and _repeats_publisher(words[0], words[1]):
        words = words[1:]
    name, rest = _split(words)
    size = next((index for index, word in enumerate(name) if _SIZE.fullmatch(word)), None)
    soc = next((known for word in rest for known in SOCS if word.lower() == known), None)
    slug = _slug("-".join(name)) or _slug(stem) or "model"
    if size is None or size == 0:
        family, tag = slug, "latest"
    else:
        family, tag = _slug("-".join(name[:size])), _slug("-".join(name[size:]))
        # Ollama's library writes a version onto the name: `llama3.2:1b`, not `llama-3.2:1b`.
        family = _VERSION.sub(r"\1\2", family)
    return ModelName(
        stem=stem,
        id=slug,
        tags=tuple(dict.fromkeys((f"{family}:{tag}", f"{family}:{_TUNED.sub('', tag)}"))),
        family=family,
        parameters=name[size].upper() if size is not None else "",
        quantization=_quantization(rest),
        context_length=_context(rest),
        soc=soc,
    )


def _part_dots(stem: str) -> str:
    # `SmolLM2-135M-Instruct.Q4_1` parts at the dot, `Qwen3-0.6B` does not: the part after it must be a quantization.
    head, dot, tail = stem.rpartition(".")
    first = _SEPARATORS.split(tail)[0] if tail else ""
    return f"{head}-{tail}" if dot and head and _QUANTIZATION.fullmatch(first) else stem


def _repeats_publisher(first: str, second: str) -> bool:
    # Files saved from a hub are often called publisher_model: `Qwen_Qwen3-0.6B`.
    return (
        bool(_PUBLISHER.fullmatch(first))
        and second.lower().startswith(first.lower())
        and first.lower() != second.lower()
    )


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that name the model, and those that tell how the file was made."""
    for index, word in enumerate(words):
        if index and (
            word.lower() in SOCS or any(kind.fullmatch(word) for kind in (_QUANTIZATION, _CONVERSION, _CONTEXT))
        ):
            name, rest = words[:index], words[index:]
            # A variant may stand behind: `Qwen2.5-3B-w8a8-Instruct`.
            name += [word for word in rest if word.lower() in _VARIANTS]
            return name, [word for word in rest if word.lower() not in _VARIANTS]
    return words, []


def _quantization(words: list[str]) -> str:
    for index, word in enumerate(words):
        if _QUANTIZATION.fullmatch(word):
            parts = [word]
            for tail in words[index + 1 :]:
                if not _QUANTIZATION_TAIL.fullmatch(tail):
                    break
                parts.append(tail)
            return "_".join(parts).upper()
    return ""


def _context(words: list[str]) -> int | None:
    for word in words:
        found = _CONTEXT.fullmatch(word)
        if found:
            digits = found[1] or found[3]
            thousands = bool(found[2] or found[3])
            if len(digits) <= 9:
                return int(digits) * (1024 if thousands else 1) or None
    return None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:100].strip("-.")
