"""What belongs beside a model's weights: tokenizer, chat template, licence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from npu.cache_size import CONFIG
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.hub import Hub, HubFile, Listing
from tasks.board.pull.index import IndexFile

BESIDE: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", CONFIG)
"""What a converted model needs beside its weights to be prompted as it was trained, and for its memory to be known."""
LICENCES: Final = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MOST_BESIDE: Final = 64 << 20
"""Bytes that one such file may have."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of the model."""

    name: str
    """In the model's folder."""
    source: str | Path
    """An address, or a file on this machine."""
    size: int | None = None
    sha256: str | None = None
    repository: str = ""
    """Of the hub; empty for a file from elsewhere, which gets no credentials."""
    direct: bool = False
    """It comes from another board, past any proxy."""


def beside_weights(hub: Hub, chosen: IndexFile, listing: Listing) -> tuple[list[PlannedFile], list[str]]:
    """The files to put beside the weights, and notes on what is missing."""
    legal = licence(hub, listing)
    if chosen.engine != "rkllm":
        return legal, []
    if chosen.tokenizer is None:
        beside, notes = tokenizer(hub, listing)
        return beside + legal, notes
    other = hub.listing(chosen.tokenizer.repository, chosen.tokenizer.revision)
    return _named_files(hub, other, BESIDE) + legal, []


def tokenizer(hub: Hub, listing: Listing) -> tuple[list[PlannedFile], list[str]]:
    """Tokenizer and template of converted weights: from beside them, else from the model they were made of."""
    own = _named_files(hub, listing, BESIDE)
    if any(file.name == BESIDE[0] for file in own):
        return own, []
    why = "it names no model that it was made from"
    for base in filter(_REPOSITORY.fullmatch, listing.bases):
        try:
            found = _named_files(hub, hub.listing(base, "main"), BESIDE)
        except PullFailed as failed:
            why = f"that of {base} could not be had ({failed})"
            continue
        if any(file.name == BESIDE[0] for file in found):
            have = {file.name for file in own}
            return [*own, *(file for file in found if file.name not in have)], []
        why = f"{base} has none either"
    note = f"No tokenizer.json came with it, and {why}; put one beside the weights for conversations and exact counts."
    return own, [note]


def licence(hub: Hub, listing: Listing) -> list[PlannedFile]:
    return _named_files(hub, listing, LICENCES)[:1]


def _named_files(hub: Hub, listing: Listing, names: Sequence[str]) -> list[PlannedFile]:
    found = [listing.file(name) for name in names]
    return [planned(hub, listing, file) for file in found if file is not None and (file.size or 0) <= MOST_BESIDE]


def planned(hub: Hub, listing: Listing, file: HubFile) -> PlannedFile:
    name = PurePosixPath(file.path).name
    return PlannedFile(
        name, hub.address(listing.repository, listing.commit, file.path), file.size, file.sha256, listing.repository
    )
