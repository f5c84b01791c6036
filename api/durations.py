"""Lengths of time as clients write them: 500ms, 30s, 2m, 1h, or plain seconds."""

from __future__ import annotations

import re

from api.errors import invalid

_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def read_duration(text: str, name: str, most: float) -> float:
    """Seconds, at most `most`. Raises `HttpProblem` naming the parameter or header."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise invalid(
            f"Invalid '{name}': it should be a time such as 500ms, 30s, 2m or 1h, or a number of seconds (at most {most:.0f}).",
            name,
        )
    return min(most, float(match[1]) * _UNITS[match[2]])
