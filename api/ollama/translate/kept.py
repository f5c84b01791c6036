"""How an answer is said, as its job's record keeps it: whoever resumes a stream says on what another process began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from api.fronts import InOnePiece, read_kept, unreadable
from api.ollama.translate import embeddings
from api.ollama.translate.answer import Head
from api.ollama.translate.chat import ChatWriter
from api.ollama.translate.generate import GenerateWriter
from api.ollama.translate.lines import LineWriter
from tasks.events import Event, Finished, Reply, fold
from tasks.jobs import Rendering

NAME = "ollama"
"""Of this front."""
VERSION = 1
WRITERS: dict[str, type[LineWriter]] = {writer.kind: writer for writer in (ChatWriter, GenerateWriter)}
VECTORS, VECTOR = "embed", "embeddings"
"""The kinds of answers that are vectors, and one."""
READERS: dict[str, Callable[[Head, Reply, Finished], dict[str, Any]]] = {
    VECTORS: embeddings.whole,
    VECTOR: embeddings.one,
}


class _Kept(msgspec.Struct, frozen=True):
    kind: str
    head: Head
    version: int = VERSION


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Kept)


def keep(kind: str, head: Head) -> Rendering:
    """What this front has to know of an answer to say it anew."""
    return Rendering(NAME, _encoder.encode(_Kept(kind, head)))


def writer_of(head: bytes) -> LineWriter:
    """A writer of the answer for which this was kept. Raises `Unreadable` and `InOnePiece`."""
    kept = _read(head)
    if kept.kind in READERS:
        raise InOnePiece
    return WRITERS[kept.kind](kept.head)


def _read(head: bytes) -> _Kept:
    kept = read_kept(_decoder, head, VERSION)
    if kept.kind not in (*WRITERS, *READERS):
        raise unreadable(f"'{kept.kind}' is unknown.")
    return kept


def whole(head: bytes, events: Sequence[Event], end: Finished) -> dict[str, Any]:
    """The whole of the answer for which this was kept. Raises `Unreadable`."""
    kept = _read(head)
    if kept.kind in READERS:
        return READERS[kept.kind](kept.head, fold(events), end)
    return WRITERS[kept.kind](kept.head).whole(fold(events), end)
