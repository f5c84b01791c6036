"""How an answer is said, as its job's record keeps it: whoever resumes a stream says on what another process began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from api.ollama.translate.answer import Head
from api.ollama.translate.chat import ChatWriter
from api.ollama.translate.generate import GenerateWriter
from api.ollama.translate.lines import LineWriter
from tasks.events import Event, Finished, Unreadable, fold
from tasks.jobs import Rendering

NAME = "ollama"
"""Of this front."""
VERSION = 1
WRITERS: dict[str, type[LineWriter]] = {writer.kind: writer for writer in (ChatWriter, GenerateWriter)}


class _Kept(msgspec.Struct, frozen=True):
    kind: str
    head: Head
    version: int = VERSION


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Kept)


def keep(writer: type[LineWriter], head: Head) -> Rendering:
    """What this front has to know of an answer to write its lines anew."""
    return Rendering(NAME, _encoder.encode(_Kept(writer.kind, head)))


def writer_of(head: bytes) -> LineWriter:
    """A writer of the answer for which this was kept. Raises `Unreadable`."""
    try:
        kept = _decoder.decode(head)
        writer = WRITERS[kept.kind]
    except (msgspec.DecodeError, KeyError) as error:
        raise Unreadable(f"How this answer is said was written by another version of rockchipllama: {error}") from error
    if kept.version > VERSION:
        raise Unreadable(
            f"How this answer is said was written by a newer version of rockchipllama (format {kept.version}, this one "
            f"reads up to {VERSION}). Upgrade this machine."
        )
    return writer(kept.head)


def whole(head: bytes, events: Sequence[Event], end: Finished) -> dict[str, Any]:
    """The whole of the answer for which this was kept. Raises `Unreadable`."""
    return writer_of(head).whole(fold(events), end)
