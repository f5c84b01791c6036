"""Models as Ollama lists and shows them."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from api.ollama.translate.answer import moment
from tasks.commands import Description
from tasks.roster import ModelStatus

FORMATS = {"llamacpp": "gguf", "rkllm": "rkllm"}
"""The kind of file an engine runs; another engine is its own."""
FOR_EVER = datetime(2318, 1, 1, tzinfo=UTC)
"""When a model is unloaded that stays: Ollama, too, says a year that nobody lives to see."""
_SIZES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMBT])", re.IGNORECASE)


def name(status: ModelStatus) -> str:
    """What this dialect calls a model: `name:tag`, its own where it has one."""
    card = status.card
    if status.adapter is not None:
        return status.name
    return next((each for each in card.names if ":" in each), f"{card.id}:latest")


def digest(status: ModelStatus) -> str:
    """The same for as long as its file and engine are; it is not the digest of the file, which nobody reads for a list."""
    card = status.card
    facts = (status.name, card.engine, card.quantization, str(card.size_bytes), str(card.created))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def capabilities(status: ModelStatus) -> list[str]:
    """What it may be asked for, in Ollama's words."""
    known = status.capabilities
    text = ["completion"] if {"completion", "chat"} & set(known) else []
    return text + [word for word in ("tools", "thinking", "embedding") if word in known]


def details(status: ModelStatus) -> dict[str, Any]:
    """The family, size and kind of a model."""
    card = status.card
    found: dict[str, Any] = {
        "parent_model": card.id if status.adapter is not None else "",
        "format": FORMATS.get(card.engine, card.engine),
        "family": card.family,
        "families": [card.family] if card.family else [],
        "parameter_size": card.parameters,
        "quantization_level": card.quantization,
        "context_length": card.context_length,
    }
    return found | ({"embedding_length": card.embedding_length} if card.embedding_length else {})


def listed(status: ModelStatus) -> dict[str, Any]:
    """One model of `/api/tags`."""
    return {
        "name": name(status),
        "model": name(status),
        "modified_at": _changed(status),
        "size": status.card.size_bytes,
        "digest": digest(status),
        "details": details(status),
        "capabilities": capabilities(status),
    }


def running(status: ModelStatus) -> dict[str, Any]:
    """One model of `/api/ps`."""
    card, stays = status.card, status.stays
    return {
        "name": name(status),
        "model": name(status),
        "size": card.size_bytes,
        "digest": digest(status),
        "details": details(status),
        "expires_at": moment(FOR_EVER if stays is None else datetime.now(UTC) + timedelta(seconds=stays)),
        # What the NPU computes with lies in the memory that is the processor's as well.
        "size_vram": card.size_bytes if card.engine == "rkllm" else 0,
        "context_length": card.context_length,
    }


def shown(status: ModelStatus, said: Description, called: str) -> dict[str, Any]:
    """What `/api/show` tells, of what a card holds and a board has `said`."""
    settled = [*said.sampling.items(), *(("stop", stop) for stop in said.stop)]
    parameters = [f"{key} {msgspec.json.encode(value).decode()}" for key, value in settled]
    system = [f"SYSTEM {msgspec.json.encode(said.system).decode()}\n"] if said.system else []
    return {
        "license": "",
        "modelfile": "".join(
            [f"# {called}\n", f"FROM {name(status)}\n", *(f"PARAMETER {each}\n" for each in parameters), *system]
        ),
        "parameters": "\n".join(parameters),
        "template": said.template,
        "system": said.system or "",
        "details": details(status),
        "model_info": _facts(status),
        "capabilities": capabilities(status),
        "modified_at": _changed(status),
    }


def _facts(status: ModelStatus) -> dict[str, Any]:
    card = status.card
    family = card.family or card.engine
    facts: dict[str, Any] = {
        "general.architecture": family,
        "general.basename": card.id,
        f"{family}.context_length": card.context_length,
    }
    if match := _SIZE.fullmatch(card.parameters):
        facts["general.parameter_count"] = int(float(match[1]) * _SIZES[match[2].upper()])
    if card.embedding_length:
        facts[f"{family}.embedding_length"] = card.embedding_length
    return facts


def _changed(status: ModelStatus) -> str:
    return moment(datetime.fromtimestamp(status.card.created, UTC))
