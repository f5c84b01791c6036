"""How an answer is said, as its job's record keeps it: whoever resumes a stream says on what another process began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from api.fronts import InOnePiece, read_kept, unreadable
from api.openai.translate import chat, completions, embeddings, rerank
from api.openai.translate.answer import Head
from api.openai.translate.chat import ChatWriter
from api.openai.translate.chunks import ChunkWriter
from api.openai.translate.completions import CompletionWriter
from tasks.events import Event, Finished, fold
from tasks.jobs import Rendering

NAME = "openai"
"""Of this front."""
VERSION = 1
WRITERS: dict[str, type[ChunkWriter]] = {writer.kind: writer for writer in (ChatWriter, CompletionWriter)}
WHOLES = {ChatWriter.kind: chat.whole, CompletionWriter.kind: completions.whole}
VECTORS = "embedding"
"""The kind of an answer that is vectors."""
RANKING = "rerank"
"""The kind of one that is a ranking."""
AnyHead: TypeAlias = Head | embeddings.Head | rerank.Head


class _Kept(msgspec.Struct, frozen=True):
    kind: str
    head: msgspec.Raw
    version: int = VERSION


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Kept)
_heads: dict[str, msgspec.json.Decoder[AnyHead]] = {
    **{kind: msgspec.json.Decoder(Head) for kind in WRITERS},
    VECTORS: msgspec.json.Decoder(embeddings.Head),
    RANKING: msgspec.json.Decoder(rerank.Head),
}


def keep(kind: str, head: AnyHead) -> Rendering:
    """What this front has to know of an answer to say it anew."""
    return Rendering(NAME, _encoder.encode(_Kept(kind, msgspec.Raw(_encoder.encode(head)))))


def writer_of(head: bytes) -> ChunkWriter:
    """A writer of the answer for which this was kept. Raises `Unreadable` and `InOnePiece`."""
    kind, known = _read(head)
    if not isinstance(known, Head):
        raise InOnePiece
    return WRITERS[kind](known)


def whole(head: bytes, events: Sequence[Event], end: Finished) -> Any:
    """The whole of the answer for which this was kept. Raises `Unreadable`."""
    kind, known = _read(head)
    if isinstance(known, embeddings.Head):
        return embeddings.whole(known, fold(events), end)
    if isinstance(known, rerank.Head):
        return rerank.whole(known, fold(events), end)
    return WHOLES[kind](known, fold(events), end)


def _read(head: bytes) -> tuple[str, AnyHead]:
    kept = read_kept(_decoder, head, VERSION)
    if kept.kind not in _heads:
        raise unreadable(f"'{kept.kind}' is unknown.")
    try:
        return kept.kind, _heads[kept.kind].decode(kept.head)
    except msgspec.DecodeError as error:
        raise unreadable(str(error)) from error
