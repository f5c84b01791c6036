"""Requests that may be sent again: a client names each with an `Idempotency-Key`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from api.errors import invalid

HEADER = "Idempotency-Key"
MOST = 255
"""Characters of a key."""


TAKEN: dict[str, Any] = {
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "schema": {"type": "string", "minLength": 1, "maxLength": MOST},
            "description": "A name of this call, by which it may be sent again.",
        }
    ]
}
"""What a route that reads it adds to its part of the document."""


def key_of(http: Request) -> str | None:
    """What the client calls this request; None when it would not send it again. Raises `HttpProblem`."""
    key = http.headers.get(HEADER)
    if key is not None and not 0 < len(key) <= MOST:
        raise invalid(f"'Idempotency-Key' should have 1 to {MOST} characters.", HEADER.lower())
    return key
