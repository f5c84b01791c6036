"""Fields that would change an answer and cannot be honoured: refused by name, never forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic_core import PydanticCustomError

Refusal: TypeAlias = tuple[tuple[Any, ...], str]
"""The values of a field that ask for nothing, and what to say to any other."""


def refused(message: str, param: str | None = None, code: str = "unsupported_parameter") -> PydanticCustomError:
    """An error of validation with its own `code`, at the field `param` of the object in hand."""
    return PydanticCustomError("refused", "{message}", {"message": message, "code": code, "param": param})


def refuse(data: Any, *tables: Mapping[str, Refusal]) -> None:
    """Raise for the first field in `data` that asks for what a table refuses."""
    for field, value in data.items() if isinstance(data, dict) else ():
        for table in tables:
            if value is not None and field in table:
                neutral, message = table[field]
                if not any(_same(value, each) for each in neutral):
                    raise refused(f"'{field}' is not supported here. " + message.format(field=f"'{field}'"), field)


def _same(value: Any, neutral: Any) -> bool:
    # In Python False is 0, and True is 1; on the wire they are not.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
