"""Models: `GET /v1/models`."""

from __future__ import annotations

from typing import Any

import msgspec

from tasks.roster import ModelStatus

OWNER = "rockchipllama"


def model(status: ModelStatus, name: str | None = None) -> dict[str, Any]:
    """One model as OpenAI lists it, with what clients of local servers look for beside it.

    `name` is what the client called it, where it called it something.
    """
    card = status.card
    return {
        "id": name or status.name,
        "object": "model",
        "created": card.created,
        "owned_by": OWNER,
        # The model an adapter speaks through.
        "parent": card.id if status.adapter is not None else None,
        "max_model_len": card.context_length,
        "context_length": card.context_length,
        "capabilities": status.capabilities,
        "meta": {
            "id": status.name,
            "names": [name if status.adapter is None else f"{name}:{status.adapter}" for name in card.names],
            "adapter": status.adapter,
            "adapters": list(card.adapters),
            "engine": card.engine,
            "engine_version": card.engine_version,
            "family": card.family,
            "parameters": card.parameters,
            "quantization": card.quantization,
            "size_bytes": card.size_bytes,
            "served": status.served,
            "loaded": status.loaded,
            "loading": status.loading,
            "waiting": status.waiting,
            "boards": list(status.boards),
            "refuses": card.refuses,
            "embedding_length": card.embedding_length,
            "notes": list(card.notes),
            "last_load": msgspec.to_builtins(card.last_load),
            "self_test": msgspec.to_builtins(card.self_test),
        },
    }


def listing(models: list[dict[str, Any]]) -> dict[str, Any]:
    """All of them."""
    return {"object": "list", "data": models}
