"""Answers that are one JSON value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response


def json_response(value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """The value as the whole answer."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")
