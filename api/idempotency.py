"""Requests that may be sent again: a client names each with an `Idempotency-Key`."""

from __future__ import annotations

from starlette.requests import Request

from api.errors import invalid

HEADER = "idempotency-key"
MOST = 255
"""Characters of a key."""


def key_of(http: Request) -> str | None:
    """What the client calls this request; None when it would not send it again. Raises `HttpProblem`."""
    key = http.headers.get(HEADER)
    if key is not None and not 0 < len(key) <= MOST:
        raise invalid(f"'Idempotency-Key' should have 1 to {MOST} characters.", HEADER)
    return key
