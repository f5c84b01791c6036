"""How long a model is to stay loaded after its last job, as clients write it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

LONGEST = 1e10
"""Seconds: some three hundred years."""


def seconds(value: Any) -> float:
    """How long a model is to stay: a number is seconds, a string a duration of Go's; what is negative, or no calendar has, is
    for ever."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return float(value) if 0 <= value < LONGEST else -1.0
    if isinstance(value, str) and len(value) <= 100:
        text = value.strip()
        negative, text = text.startswith("-"), text.removeprefix("-").removeprefix("+")
        parts = _DURATION.findall(text)
        if text == "0" or (parts and "".join(parts) == text):
            total = sum(float(part.rstrip("nuµμmsh")) * _UNITS[part.lstrip("0123456789.")] for part in parts)
            return -1.0 if (negative and total) or total >= LONGEST else total
    raise ValueError('it should be a number of seconds, or a duration such as "5m" or "1h30m"')


def _wanted(value: Any) -> float | None:
    return None if value is None else seconds(value)


KeepAlive = Annotated[
    float | None, PlainValidator(_wanted), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})
]
