"""Models: `GET /v1/models`, as Anthropic lists them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tasks.roster import ModelStatus


def model(status: ModelStatus) -> dict[str, Any]:
    """One model."""
    card = status.card
    return {
        "type": "model",
        "id": status.name,
        "display_name": status.name,
        "created_at": datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": card.context_length,
        "max_tokens": card.context_length,
    }


def listing(models: list[dict[str, Any]]) -> dict[str, Any]:
    """All of them, on one page."""
    return {
        "data": models,
        "has_more": False,
        "first_id": models[0]["id"] if models else None,
        "last_id": models[-1]["id"] if models else None,
    }
