"""How an answer is said, as its job's record keeps it: whoever resumes a stream says on what another process began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from api.anthropic.translate import answer
from api.anthropic.translate.answer import Head
from api.anthropic.translate.blocks import BlockWriter
from api.fronts import read_kept
from tasks.events import Event, Finished, fold
from tasks.jobs import Rendering

NAME = "anthropic"
"""Of this front."""
VERSION = 1


class _Kept(msgspec.Struct, frozen=True):
    head: Head
    version: int = VERSION


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Kept)


def keep(head: Head) -> Rendering:
    """What this front has to know of an answer to write its events anew."""
    return Rendering(NAME, _encoder.encode(_Kept(head)))


def writer_of(head: bytes) -> BlockWriter:
    """A writer of the answer for which this was kept. Raises `Unreadable`."""
    return BlockWriter(read_kept(_decoder, head, VERSION).head)


def whole(head: bytes, events: Sequence[Event], end: Finished) -> dict[str, Any]:
    """The whole of the answer for which this was kept. Raises `Unreadable`."""
    return answer.whole(writer_of(head).head, fold(events), end)
