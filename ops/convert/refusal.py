"""How a recipe is refused: with its file, the line, and the key."""

from __future__ import annotations

import re
from pathlib import Path


class RecipeRefused(Exception):
    """Raised before any long work; the message names file, line and key, and says what to do."""


def refusal(path: Path, text: str, table: str, key: str, what: str) -> RecipeRefused:
    """The refusal of one key; the sentence goes on with `what`."""
    line = _line(text, table, key)
    where = f"{path}, line {line}" if line else str(path)
    return RecipeRefused(f"{where}: `{table + '.' if table else ''}{key}` {what}.")


def _line(text: str, table: str, key: str) -> int | None:
    # TOML keeps no positions. A key that is absent is looked for in its table's head.
    current, head = "", None
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        if found:
            current = found[1]
            if current == f"{table}.{key}".strip("."):
                return number
            head = number if current == table else head
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line):
            return number
    return head
