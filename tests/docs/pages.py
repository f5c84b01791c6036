"""The documentation as tests see it: pages, fenced blocks, and the commands in a console block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.settings import ROOT

PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "models/README.md")
"""Every page of the documentation."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block, with the line it begins at."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    """The page's blocks in that language."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(str(page.relative_to(ROOT)), text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def commands(block: Block) -> Iterator[str]:
    """What follows each `$ `, with the indented lines that continue it. Everything else is output."""
    command: list[str] = []
    for line in (*block.text.splitlines(), "$ "):
        if line.startswith("$ "):
            if command:
                yield "\n".join(command)
            command = [line[2:]]
        elif line.startswith("    ") and command:
            command.append(line)
        elif command:
            yield "\n".join(command)
            command = []
